"""Sabotages of tokenizer, detokenizer, chat template and end-of-sequence ids."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from tasks.records import ExportedModel
from tests.gguf_files import write_tiny_gguf
from tests.sabotage.registry import own, sabotage

TOKENIZER, DETOKENIZER = "openvino_tokenizer", "openvino_detokenizer"
GENERATION_PROMPT = re.compile(r"\{% if add_generation_prompt %\}.*?\{% endif %\}", re.DOTALL)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def _convert(tokenizer: Any, folder: Path, *, keep: tuple[str, ...] = (TOKENIZER, DETOKENIZER)) -> None:
    """Replace the export's OpenVINO tokenizer and detokenizer, or one of them, by those of another tokenizer."""
    import openvino
    from openvino_tokenizers import convert_tokenizer

    models = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, model in zip((TOKENIZER, DETOKENIZER), models, strict=True):
        if name not in keep:
            continue
        for suffix in (".xml", ".bin"):
            (folder / f"{name}{suffix}").unlink()
        openvino.save_model(model, folder / f"{name}.xml")


def _edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(own(path).read_bytes())
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


@sabotage("tokenizer_prompt_mismatches", "tokenizer_stress_share")
def tokenizer_derived_from_gguf(copy: ExportedModel) -> None:
    """The tokenizer is the Llama-style one that transformers derives from the model's GGUF file (design.md, 2)."""
    from transformers import AutoTokenizer

    made = json.loads((copy.checkpoint.path / "tokenizer.json").read_bytes())
    tokens = sorted(made["model"]["vocab"], key=made["model"]["vocab"].get)
    special = {token["content"] for token in made["added_tokens"]}
    fields = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in made["model"]["merges"]],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": (copy.path / "chat_template.jinja").read_text(encoding="utf-8"),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_gguf(Path(folder) / "model.gguf", fields=fields)
        derived = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copy.path / name).unlink()
    derived.save_pretrained(copy.path)
    _convert(AutoTokenizer.from_pretrained(copy.path), copy.path)


@sabotage("tokenizer_prompt_mismatches", "tokenizer_stress_share")
def tokenizer_without_special_tokens(copy: ExportedModel) -> None:
    """OpenVINO's tokenizer takes <|im_start|> and <|im_end|> for words and splits them into pieces."""

    def forget(data: dict[str, Any]) -> None:
        del data["added_tokens"][1:3]

    _convert(_rebuilt(copy, forget), copy.path, keep=(TOKENIZER,))


@sabotage("tokenizer_prompt_mismatches", "tokenizer_stress_share")
def tokenizer_in_lower_case(copy: ExportedModel) -> None:
    """OpenVINO's tokenizer makes all letters small."""
    lower = {"type": "Lowercase"}
    _convert(_rebuilt(copy, lambda data: data.update(normalizer=lower)), copy.path, keep=(TOKENIZER,))


def _rebuilt(copy: ExportedModel, change: Callable[[dict[str, Any]], None]) -> Any:
    """Return the checkpoint's tokenizer with a change in its tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy.checkpoint.path)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    change(data)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(data))
    return tokenizer


@sabotage("detokenizer_stress_share", "malformed_answers")
def detokenizer_of_another_model(copy: ExportedModel) -> None:
    """The detokenizer is that of a model with another vocabulary of the same size."""

    def reverse(data: dict[str, Any]) -> None:
        vocabulary, special = data["model"]["vocab"], len(data["added_tokens"])
        words = [token for token, number in sorted(vocabulary.items(), key=lambda item: item[1]) if number >= special]
        vocabulary.update(zip(words, range(len(vocabulary) - 1, special - 1, -1), strict=True))

    _convert(_rebuilt(copy, reverse), copy.path, keep=(DETOKENIZER,))


@sabotage("malformed_answers", "detokenizer_stress_share")
def detokenizer_with_special_tokens(copy: ExportedModel) -> None:
    """The detokenizer takes <|im_start|> and <|im_end|> for words: answers end in <|im_end|>."""

    def words(data: dict[str, Any]) -> None:
        for token in data["added_tokens"][1:3]:
            token["special"] = False

    _convert(_rebuilt(copy, words), copy.path, keep=(DETOKENIZER,))


def _set_template(folder: Path, template: str | None) -> None:
    """Write a chat template wherever the engine and Hugging Face may read one; None: nowhere."""
    path, graph = folder / "chat_template.jinja", own(folder / f"{TOKENIZER}.xml")
    path.unlink()
    _edit_json(folder / "tokenizer_config.json", lambda config: config.pop("chat_template", None))
    line = "" if template is None else f"<chat_template value={quoteattr(template, {chr(10): '&#10;'})} />"
    text, count = re.subn(r"<chat_template value=\".*?\" />", lambda _: line, graph.read_text(encoding="utf-8"))
    assert count == 1, "the tokenizer's rt_info has no chat template"
    graph.write_text(text, encoding="utf-8")
    if template is not None:
        path.write_text(template, encoding="utf-8")


@sabotage("template_mismatches", "engine_failures")
def template_dropped(copy: ExportedModel) -> None:
    """There is no chat template, in any of the places where one is looked for."""
    _set_template(copy.path, None)


@sabotage("template_mismatches")
def template_without_generation_prompt(copy: ExportedModel) -> None:
    """The chat template does not open the assistant's answer."""
    template = (copy.path / "chat_template.jinja").read_text(encoding="utf-8")
    _set_template(copy.path, GENERATION_PROMPT.sub("", template))


@sabotage("template_mismatches")
def template_of_another_model(copy: ExportedModel) -> None:
    """The chat template is Zephyr's."""
    _set_template(copy.path, ZEPHYR)


def _set_eos(copy: ExportedModel, number: int | None) -> None:
    """Set the end-of-sequence id of configs and tokenizer; None: leave it out."""
    for name in ("config.json", "generation_config.json"):
        _edit_json(copy.path / name, lambda config: _set_eos_id(config, number))
    graph = own(copy.path / f"{TOKENIZER}.xml")
    line = "" if number is None else f'<eos_token_id value="{number}" />'
    text, count = re.subn(r"<eos_token_id value=\"\d+\" />", line, graph.read_text(encoding="utf-8"))
    assert count == 1, "the tokenizer's rt_info has no end-of-sequence id"
    graph.write_text(text, encoding="utf-8")


def _set_eos_id(config: dict[str, Any], number: int | None) -> None:
    del config["eos_token_id"]
    if number is not None:
        config["eos_token_id"] = number


@sabotage("eos_mismatches", "missed_stops")
def eos_wrong(copy: ExportedModel) -> None:
    """Configs and tokenizer name another token as the end of sequence."""
    _set_eos(copy, 0)


@sabotage("eos_mismatches", "engine_failures")
def eos_missing(copy: ExportedModel) -> None:
    """Configs and tokenizer name no end-of-sequence token."""
    _set_eos(copy, None)


@sabotage("eos_mismatches", "missed_stops")
def eos_of_two_minds(copy: ExportedModel) -> None:
    """generation_config.json, which the engine reads, names another end of sequence than config and tokenizer."""
    _edit_json(copy.path / "generation_config.json", lambda config: _set_eos_id(config, 0))
