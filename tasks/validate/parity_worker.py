"""The parity's child process: what both tokenizers make of texts and chats; `tasks.validate.parity` judges it.

The source's side is Hugging Face's tokenizer of the checkpoint; the exported one is openvino_genai's, which is what the
engine itself encodes, decodes and renders with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.child import Message, Parent, serve_once
from tasks.validate.differences import parted
from tasks.validate.stress import Chat, stress_chats, stress_texts

Seen = dict[str, Any]
_ANSWER = "vinoflow"  # stands for an assistant's answer where the template is looked at


def observe(request: Message, _: Parent) -> Message:
    """Encode, decode and render with both tokenizers, and read what ends an answer.

    Raises:
        ValueError: OpenVINO refuses the exported tokenizer or its generation_config.json.
    """
    if not request["trust_remote_code"]:
        # a tokenizer needs no torch, whose import by transformers takes four seconds of five
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from transformers import AutoTokenizer

    source = AutoTokenizer.from_pretrained(  # nosec B615 # a folder of this machine
        request["checkpoint"], trust_remote_code=request["trust_remote_code"], local_files_only=True
    )
    exported = _load(request["exported"])
    special = {number: token.content for number, token in source.added_tokens_decoder.items() if token.special}
    names = list(special.values())
    texts = stress_texts(names) | ({"the recipe's text": request["text"]} if request["text"] else {})
    before, after = _around_an_answer(source)
    return {
        "prompts": [seen for prompt in request["prompts"] if (seen := _prompt(source, exported, prompt))],
        "texts": [
            _encoded(source, exported, name, text, special=special_tokens)
            for name, text in texts.items()
            for special_tokens in (False, True)
        ],
        "decoded": [_decoded(source, exported, name, _ids(source, text)) for name, text in texts.items()],
        "vocabulary": _decoded_alone(source, exported),
        "chats": _chats(source, exported, request["prompts"], names),
        "has_template": bool(source.chat_template),
        "special_ids": [number for number, token in special.items() if token not in before],
        "endings": _endings(source, exported, request)
        | {"turn_end": next((number for number in _ids(source, after) if number in special), None)},
        "text_ids": _ids(source, request["text"]),
        "prefix_ids": _prefix(source),
    }


def _load(folder: str) -> Any:
    import openvino_genai

    try:
        return openvino_genai.Tokenizer(folder)
    except Exception as error:
        raise ValueError(f"OpenVINO refuses the tokenizer in {folder}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    """Return what OpenVINO says, without the places in its source where it noticed."""
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _ids(source: Any, text: str, *, special: bool = False) -> list[int]:
    found: list[int] = source(text, add_special_tokens=special)["input_ids"]
    return found


def _tried(work: Callable[[], Any]) -> Seen:
    """Return what the exported tokenizer gives, or its error: a broken one must not end the comparison."""
    try:
        return {"exported": work()}
    except Exception as error:
        return {"error": _last_line(error)}


def _encoded(source: Any, exported: Any, subject: str, text: str, *, special: bool) -> Seen:
    ids = _ids(source, text, special=special)
    seen = _tried(lambda: [int(n) for n in exported.encode(text, add_special_tokens=special).input_ids.data[0]])
    found = {"subject": subject, "text": text, "source": ids, **seen}
    if "exported" in seen and seen["exported"] != ids:
        at = parted(ids, seen["exported"])
        found["pieces"] = [source.convert_ids_to_tokens(side[at : at + 6]) for side in (ids, seen["exported"])]
    return found


def _decoded(source: Any, exported: Any, subject: str, ids: list[int]) -> Seen:
    text = source.decode(ids, skip_special_tokens=True)
    return {"subject": subject, "source": text, **_tried(lambda: exported.decode(ids))}


def _decoded_alone(source: Any, exported: Any) -> Seen:
    """Return the tokens of the vocabulary that decode to something else on their own: id, source, exported."""
    ids = sorted(source.get_vocab().values())
    texts = source.batch_decode([[number] for number in ids], skip_special_tokens=True)
    seen = _tried(lambda: exported.decode([[number] for number in ids]))
    triples = zip(ids, texts, seen.pop("exported", texts), strict=True)
    return {"last": ids[-1], "different": [triple for triple in triples if triple[1] != triple[2]], **seen}


def _prompt(source: Any, exported: Any, prompt: Seen) -> Seen | None:
    """Encode a prompt as it goes to the model; None: nothing can render it."""
    if not prompt["messages"]:
        return _encoded(source, exported, prompt["id"], prompt["prompt"], special=prompt["add_special_tokens"])
    seen = _rendered(source, exported, prompt["messages"])
    text = seen.get("source", seen.get("exported"))
    return None if text is None else _encoded(source, exported, prompt["id"], text, special=False)


def _rendered(source: Any, exported: Any, chat: Chat) -> Seen:
    """Render a chat on both sides; without `source` where the checkpoint's template refuses it."""
    seen = _tried(lambda: exported.apply_chat_template(chat, True))
    try:
        return seen | {"source": source.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)}
    except Exception:  # a template raises what it likes
        return seen


def _chats(source: Any, exported: Any, prompts: list[Seen], special: list[str]) -> list[Seen]:
    """Render the prompts' chats, and those of the stress chats that the checkpoint's template is made for."""
    asked = {prompt["id"]: prompt["messages"] for prompt in prompts if prompt["messages"]}
    stress = stress_chats(special)
    seen = {name: _rendered(source, exported, chat) for name, chat in (asked | stress).items()}
    kept = [name for name in seen if name in asked or _is_made_for(stress[name], seen[name])]
    return [{"subject": name, **seen[name]} for name in kept]


def _is_made_for(chat: Chat, seen: Seen) -> bool:
    """Tell whether the checkpoint's template is made for such a chat.

    One that leaves a system message out without a word is not: the engine puts the message into the user's turn.
    """
    system = "".join(message["content"].strip() for message in chat if message["role"] == "system")
    return "source" in seen and system in seen["source"]


def _around_an_answer(source: Any) -> tuple[str, str]:
    """Return what the template writes into an assistant's turn before the answer, and what after it."""
    ask, tell = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}
    try:
        asked = source.apply_chat_template([ask], tokenize=False, add_generation_prompt=True)
        whole = source.apply_chat_template([ask, tell], tokenize=False)
    except Exception:  # there is no template, or one for something else
        return "", ""
    before, _, after = whole.rpartition(_ANSWER)
    return before.removeprefix(asked) if before.startswith(asked) else "", after


def _endings(source: Any, exported: Any, request: Message) -> Seen:
    """Return the ids that end an answer, as each place states them."""
    checkpoint, folder = Path(request["checkpoint"]), Path(request["exported"])
    config, eos_token = _read(checkpoint / "config.json"), _read(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(eos_token, dict):
        eos_token = eos_token["content"]
    return {
        "checkpoint_config": _eos(config),
        "checkpoint_generation": _eos(_read(checkpoint / "generation_config.json")),
        "checkpoint_tokenizer": source.eos_token_id,
        "exported_config": _eos(_read(folder / "config.json")),
        "exported_tokenizer": source.convert_tokens_to_ids(eos_token) if eos_token else None,
        "engine_tokenizer": exported.get_eos_token_id(),
        "engine": _engine_stops(folder, exported),
        "vocabulary": _text_config(config).get("vocab_size", len(source)),
    }


def _engine_stops(folder: Path, exported: Any) -> list[int]:
    """Return the ids at which the engine stops.

    Source: openvino.genai, ContinuousBatchingPipeline: generation_config.json, or else the tokenizer's eos.
    """
    import openvino_genai

    path = folder / "generation_config.json"
    try:
        config = openvino_genai.GenerationConfig(str(path)) if path.exists() else openvino_genai.GenerationConfig()
    except Exception as error:
        raise ValueError(f"the engine refuses {path}: {_last_line(error)}") from error
    if config.eos_token_id == -1:
        return [number for number in [exported.get_eos_token_id()] if number != -1]
    return sorted(config.stop_token_ids)


def _read(path: Path) -> Seen:
    return json.loads(path.read_bytes()) if path.exists() else {}


def _text_config(config: Seen) -> Seen:
    found: Seen = config.get("text_config") or config
    return found


def _eos(config: Seen) -> list[int]:
    found = config.get("eos_token_id", _text_config(config).get("eos_token_id"))
    return found if isinstance(found, list) else [] if found is None else [found]


def _prefix(source: Any) -> list[int]:
    """Return the tokens that the tokenizer begins every text with."""
    bare, whole = _ids(source, "Hello"), _ids(source, "Hello", special=True)
    starts = range(len(whole) - len(bare) + 1)
    return whole[: next((start for start in starts if whole[start : start + len(bare)] == bare), 0)]


if __name__ == "__main__":
    serve_once(observe)
