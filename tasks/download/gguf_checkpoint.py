"""The child process that turns a GGUF file into a Hugging Face checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tasks.child import Message, Parent, serve_once
from tasks.download.gguf_tokenizer import TokenizerFields, build_tokenizer, read_field, read_tokenizer_fields
from tasks.errors import SourceError

_Item = TypeVar("_Item")
# Bounds the copy that safetensors makes of a shard while it writes.
_SHARD_SIZE = "1GB"


def convert(gguf: Path, folder: Path, *, on_event: Callable[..., None]) -> None:
    """Write weights, configuration and tokenizer of a GGUF file into a folder.

    Args:
        gguf: The file.
        folder: Gets config.json, generation_config.json, float32 safetensors and the tokenizer's files.
        on_event: Gets `event="opened"` with `tensors` and `weights_bytes`, then `event="tensor"` with `done`.

    Raises:
        SourceError: The file is damaged, or something in it has no faithful counterpart in transformers.
    """
    reader = _open(gguf)
    fields = read_tokenizer_fields(reader)
    tokenizer = build_tokenizer(fields)
    _refuse_lost_settings(reader)
    on_event(event="opened", tensors=len(reader.tensors), weights_bytes=4 * _count(reader))
    _forget_tokenizer(reader)
    with _helped(reader, on_tensor=lambda done: on_event(event="tensor", done=done)):
        model = _load(reader, gguf)
    del reader
    _set_token_ids(model, fields)
    model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    tokenizer.save_pretrained(folder)


def _open(gguf: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(gguf)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        size = gguf.stat().st_size
        raise SourceError(
            f"not a GGUF file that can be read, or a damaged one ({size} bytes): {type(error).__name__}: {error}"
        ) from error


def _refuse_lost_settings(reader: Any) -> None:
    """Refuse what transformers drops in silence, and what would change every answer."""
    architecture = _architecture(reader)
    scaling = read_field(reader, f"{architecture}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise SourceError(
            f"{architecture}.rope.scaling.type is {scaling!r}, which transformers does not take over from "
            "a GGUF file: take the checkpoint from a hub or a local folder"
        )


def _architecture(reader: Any) -> str:
    architecture = read_field(reader, "general.architecture")
    if architecture is None:
        raise SourceError("the GGUF file is damaged: its field general.architecture is missing")
    return str(architecture)


def _count(reader: Any) -> int:
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def _forget_tokenizer(reader: Any) -> None:
    """Drop the tokenizer's long lists, which transformers would parse for seconds to take their length at most."""
    lists = ["tokenizer.ggml.token_type", "tokenizer.ggml.merges"]
    if f"{_architecture(reader)}.vocab_size" in reader.fields:
        lists.append("tokenizer.ggml.tokens")
    for name in lists:
        reader.fields.pop(name, None)


@contextmanager
def _helped(reader: Any, *, on_tensor: Callable[[int], None]) -> Iterator[None]:
    """Let transformers use our reader and report each tensor; without this it is slower and silent, no more.

    It parses the file twice, in Python, and builds the same map of tensor names once for each submodule.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    def report(items: Iterable[_Item], **_: Any) -> Iterator[_Item]:
        for done, item in enumerate(items, start=1):
            yield item
            on_tensor(done)

    changes: dict[tuple[Any, str], Any] = {
        (gguf, "GGUFReader"): lambda *_: reader,
        (gguf, "get_tensor_name_map"): functools.cache(gguf.get_tensor_name_map),
        (loader, "tqdm"): report,
    }
    before = {place: getattr(*place) for place in changes}
    try:
        for (module, name), value in changes.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


def _load(reader: Any, gguf: Path) -> Any:
    """Return the model in float32, with every weight of the file in it."""
    import torch
    from transformers import AutoModelForCausalLM

    architecture = _architecture(reader)
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a folder of this machine
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except (ValueError, KeyError, IndexError, TypeError, NotImplementedError, RuntimeError) as error:
        raise SourceError(
            f"transformers cannot load it (architecture {architecture!r}): {type(error).__name__}: {error}"
        ) from error
    taken = sum(weights.numel() for weights in model.parameters())
    missing = sorted(loaded["missing_keys"])
    if missing or taken != _count(reader):
        raise SourceError(
            f"transformers took {taken} of {_count(reader)} weights (architecture {architecture!r}; without a value: "
            f"{', '.join(missing[:3]) or 'none'}): the model would answer wrongly"
        )
    return model


def _set_token_ids(model: Any, fields: TokenizerFields) -> None:
    stops: int | list[int] | None = fields.stops[0] if len(fields.stops) == 1 else fields.stops or None
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = fields.bos, stops, fields.pad
    model.config.__dict__.pop("_model_name_or_path", None)  # general.name of the file, which is no path


def _work(request: Message, parent: Parent) -> Message:
    try:
        convert(Path(request["gguf"]), Path(request["folder"]), on_event=parent.send)
    except SourceError as error:
        return {"refused": str(error)}
    return {}


if __name__ == "__main__":
    serve_once(_work)
