"""Does the export read, write and frame text as the checkpoint does: tokenizer, detokenizer, template, ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.child import run
from tasks.config import ReferencePrompt
from tasks.errors import WorkerError
from tasks.records import Fault, Record
from tasks.validate.differences import around, parted
from tasks.validate.endings import Endings, disagreements

Seen = dict[str, Any]
_TOLD = 10  # faults of a metric that are told one by one


class Parity(Record):
    """How far the export's tokenizer and template agree with the checkpoint's, and what they say of tokens."""

    metrics: dict[str, float]
    faults: tuple[Fault, ...]
    stop_ids: tuple[int, ...] = Field((), description="The tokens at which the engine ends an answer.")
    template_ids: tuple[int, ...] = Field((), description="Special tokens that no answer may say.")
    text_ids: tuple[int, ...] = Field((), description="The recipe's text in the checkpoint's tokens, none added.")
    prefix_ids: tuple[int, ...] = Field((), description="The tokens that the tokenizer begins every text with.")


def check_parity(
    checkpoint: Path,
    exported: Path,
    prompts: Sequence[ReferencePrompt],
    *,
    text: str = "",
    trust_remote_code: bool = False,
    timeout_s: float,
) -> Parity:
    """Compare the export's tokenizer, template and stop tokens with the checkpoint's.

    Whatever keeps them from being compared (a file that is missing or damaged, a crash) is a fault in each metric.

    Args:
        checkpoint: The checkpoint's folder.
        exported: The exported model's folder.
        prompts: The reference prompts.
        text: The recipe's text; may be empty.
        trust_remote_code: Run the checkpoint's own tokenizer code.
        timeout_s: The comparison may take this long.
    """
    request = {
        "checkpoint": str(checkpoint),
        "exported": str(exported),
        "prompts": [prompt.model_dump(mode="json") for prompt in prompts],
        "text": text,
        "trust_remote_code": trust_remote_code,
    }
    try:
        return judge_parity(run("tasks.validate.parity_worker", request, timeout_s=timeout_s))
    except WorkerError as error:
        return _nothing_agrees(prompts, str(error))


def judge_parity(seen: Seen) -> Parity:
    """Turn what the child process saw, its result, into metrics and faults."""
    endings = Endings.model_validate(seen["endings"])
    size, texts = endings.vocabulary, len(seen["decoded"]) + 1
    faults = {
        "tokenizer_prompt_mismatches": _told((entry["subject"], _reading(entry, size)) for entry in seen["prompts"]),
        "tokenizer_stress_share": _told(
            [("the vocabulary", _room(seen["vocabulary"], size))]
            + [(entry["subject"], _reading(entry, size)) for entry in seen["texts"]]
        ),
        "detokenizer_stress_share": _told(
            [("every token alone", _writing_alone(seen["vocabulary"]))]
            + [(entry["subject"], _writing(entry)) for entry in seen["decoded"]]
        ),
        "template_mismatches": _told(
            (entry["subject"], _framing(entry, has_template=seen["has_template"])) for entry in seen["chats"]
        ),
        "eos_mismatches": list(disagreements(endings)),
    }
    return Parity(
        metrics={
            name: 1 - len(found) / texts if name.endswith("_share") else float(len(found))
            for name, found in faults.items()
        },
        faults=tuple(fault for name, found in faults.items() for fault in _listed(name, found)),
        stop_ids=endings.engine,
        template_ids=tuple(sorted(set(seen["special_ids"]) - set(endings.engine))),
        text_ids=seen["text_ids"],
        prefix_ids=seen["prefix_ids"],
    )


def _nothing_agrees(prompts: Sequence[ReferencePrompt], message: str) -> Parity:
    """Return what holds where the tokenizers could not even be loaded."""
    metrics = {
        "tokenizer_prompt_mismatches": float(len(prompts)),
        "tokenizer_stress_share": 0.0,
        "detokenizer_stress_share": 0.0,
        "template_mismatches": float(max(1, sum(bool(prompt.messages) for prompt in prompts))),
        "eos_mismatches": 1.0,
    }
    faults = (
        Fault(metric=name, subject="tokenizer", message=f"nothing could be compared: {message.strip()}")
        for name in metrics
    )
    return Parity(metrics=metrics, faults=tuple(faults))


def _told(messages: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the first message of each subject that has one."""
    found: dict[str, str] = {}
    for subject, message in messages:
        if message:
            found.setdefault(subject, message)
    return list(found.items())


def _listed(metric: str, found: list[tuple[str, str]]) -> Iterator[Fault]:
    for subject, message in found[:_TOLD]:
        yield Fault(metric=metric, subject=subject, message=message)
    if rest := [subject for subject, _ in found[_TOLD:]]:
        names = ", ".join(rest[:_TOLD]) + (", ..." if len(rest) > _TOLD else "")
        yield Fault(metric=metric, subject=f"{len(rest)} more", message=f"{len(rest)} more differ: {names}")


def _reading(entry: Seen, size: int) -> str:
    """Return how a text is encoded otherwise, or nothing."""
    if "error" in entry:
        return f"OpenVINO's tokenizer fails: {entry['error']}"
    source, exported = entry["source"], entry["exported"]
    if beyond := [number for number in (*source, *exported) if number >= size]:
        return f"token {beyond[0]} is beyond the model's {size} embeddings, in {around(entry['text'], 0)}"
    if source == exported:
        return ""
    at = parted(source, exported)
    pieces = entry["pieces"]
    return (
        f"the ids differ from position {at} on: Hugging Face {source[at : at + 6]} {pieces[0]} ({len(source)} in all), "
        f"OpenVINO {exported[at : at + 6]} {pieces[1]} ({len(exported)} in all), in {around(entry['text'], 0)}"
    )


def _room(vocabulary: Seen, size: int) -> str:
    last = vocabulary["last"]
    return "" if last < size else f"the tokenizer's ids reach {last}, the model has {size} embeddings"


def _writing(entry: Seen) -> str:
    """Return how tokens are decoded otherwise, or nothing."""
    if "error" in entry:
        return f"OpenVINO's detokenizer fails: {entry['error']}"
    return _texts(entry["source"], entry["exported"])


def _writing_alone(vocabulary: Seen) -> str:
    if "error" in vocabulary:
        return f"OpenVINO's detokenizer fails: {vocabulary['error']}"
    told = [f"{number} is {source!r}, in OpenVINO {exported!r}" for number, source, exported in vocabulary["different"]]
    return f"{len(told)} tokens decode otherwise: {'; '.join(told[:_TOLD])}" if told else ""


def _framing(entry: Seen, *, has_template: bool) -> str:
    """Return how a chat is rendered otherwise, or nothing; nothing, too, where the checkpoint's template refuses it."""
    if "source" not in entry:
        return "" if has_template else "the checkpoint has no chat template: give a prompt in place of messages"
    if "error" in entry:
        return f"the engine cannot render it: {entry['error']}"
    return _texts(entry["source"], entry["exported"])


def _texts(source: str, exported: str) -> str:
    if source == exported:
        return ""
    at = parted(source, exported)
    return (
        f"the texts differ from character {at} on: Hugging Face {around(source, at)}, OpenVINO {around(exported, at)}"
    )
