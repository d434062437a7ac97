"""Do configs, tokenizers, template and engine agree on what ends an answer?"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tasks.records import Record


class Endings(Record):
    """The ids that end an answer, as each place states them."""

    checkpoint_config: tuple[int, ...] = Field(description="eos_token_id of config.json; empty: it says nothing.")
    checkpoint_generation: tuple[int, ...] = Field(description="eos_token_id of generation_config.json.")
    checkpoint_tokenizer: int | None = Field(description="eos of Hugging Face's tokenizer.")
    exported_config: tuple[int, ...] = Field(description="As in the checkpoint, in the exported folder.")
    exported_tokenizer: int | None = Field(description="eos_token of the exported tokenizer_config.json.")
    engine_tokenizer: int = Field(description="openvino_genai's Tokenizer.get_eos_token_id(); -1: none.")
    engine: tuple[int, ...] = Field(description="Where the engine stops.")
    turn_end: int | None = Field(description="The special token that the template puts after an answer.")
    vocabulary: int = Field(description="Embeddings of the model.")


def disagreements(found: Endings) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, as the file that it is in and a message.

    Several ids may end an answer, and a tokenizer knows only one of them: Phi-3 states <|endoftext|> and stops at
    <|end|> too, Gemma at <eos> and <end_of_turn>. So the tokenizer's eos and the template's end of turn must be among
    the ids at which the engine stops, and those must be the checkpoint's.
    """
    engine, source = set(found.engine), set(found.checkpoint_generation or found.checkpoint_config)
    if not engine:
        yield "generation_config.json", "nothing ends an answer: neither it nor the tokenizer states an eos_token_id"
    if missing := source - engine:
        yield "generation_config.json", f"the engine does not stop at {_ids(missing)}, where the checkpoint does"
    if source and (more := engine - source):
        yield "generation_config.json", f"the engine stops at {_ids(more)}, where the checkpoint goes on"
    if found.checkpoint_config and found.exported_config and set(found.checkpoint_config) != set(found.exported_config):
        yield (
            "config.json",
            f"eos_token_id is {_ids(found.exported_config)} in the export, {_ids(found.checkpoint_config)} in the "
            "checkpoint",
        )
    yield from _tokenizers(found, engine)
    if found.turn_end is not None and engine and found.turn_end not in engine:
        yield (
            "chat template",
            f"it ends an answer with {found.turn_end}, at which the engine does not stop (it stops at "
            f"{_ids(engine)}): add it to eos_token_id in the checkpoint's generation_config.json",
        )
    if beyond := {number for number in engine | source if not 0 <= number < found.vocabulary}:
        yield "generation_config.json", f"eos_token_id {_ids(beyond)}: the model has {found.vocabulary} tokens, from 0"


def _tokenizers(found: Endings, engine: set[int]) -> Iterator[tuple[str, str]]:
    eos = found.checkpoint_tokenizer
    if eos is None:
        return
    for place, exported in (
        ("tokenizer_config.json", found.exported_tokenizer),
        ("openvino_tokenizer.xml", found.engine_tokenizer),
    ):
        if exported != eos:
            yield place, f"the export's eos is {exported}, the checkpoint's tokenizer has {eos}"
    if engine and eos not in engine:
        yield (
            "tokenizer_config.json",
            f"the tokenizer's eos is {eos}, at which the engine does not stop (it stops at {_ids(engine)}): add it to "
            "eos_token_id in the checkpoint's generation_config.json",
        )


def _ids(numbers: set[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(numbers)))
