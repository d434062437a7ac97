from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Export
from tasks.errors import PreflightError
from tasks.export.ir import read_weights
from tasks.preflight import Preflight, Structure, build_structure, preflight, read_header, read_structure
from tasks.preflight.findings import on_disk, on_memory
from tasks.preflight.needs import Needs
from tests.tiny_exports import job, run_jobs

REPOSITORY = Path(__file__).parents[2]


def int4(**settings: Any) -> Export:
    return Export(weight_format="int4", **{"sym": True, "group_size": 64, **settings})


RATIO = int4(ratio=0.6)
ADJUST = int4(group_size_fallback="adjust")
REFUSED = int4(group_size_fallback="error")

# Which shapes fit 64 is known by hand: 96 = 3 * 32, 144 = 9 * 16, 224 = 7 * 32.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Export]]] = {
    "llama": (
        "Llama",
        {},
        {
            "ratio": RATIO,
            "int8": Export(weight_format="int8"),
            "fp16": Export(weight_format="fp16"),
            "all": int4(all_layers=True, sym=False),
            "none": int4(ratio=0.6, backup_precision="none"),
            "channel": int4(group_size=-1, backup_precision="int8_sym"),
        },
    ),
    "tied": ("Llama", {"tie_word_embeddings": True}, {"adjust": ADJUST, "all": int4(all_layers=True, sym=False)}),
    "wide": (
        "Llama",
        {"dtype": "float32"},
        {"fp32": Export(weight_format="fp32"), "none": int4(backup_precision="none")},
    ),
    "odd_hidden": (
        "Llama",
        {"hidden_size": 96},
        {"refused": REFUSED, "ratio": RATIO, "ignore": int4(group_size_fallback="ignore"), "adjust": ADJUST},
    ),
    "odd_down": ("Llama", {"intermediate_size": 224}, {"refused": REFUSED, "adjust": ADJUST}),
    "hopeless": ("Llama", {"hidden_size": 144}, {"adjust": ADJUST, "refused": REFUSED}),
    "phi3": (
        "Phi3",
        {"intermediate_size": 224},
        {"refused": REFUSED, "adjust": ADJUST, "ratio": int4(ratio=0.6, group_size=32)},
    ),
    "qwen2": ("Qwen2", {"hidden_size": 96}, {"refused": REFUSED, "adjust": ADJUST}),
    "gpt2": ("GPT2", {"hidden_size": 96, "n_inner": 256}, {"refused": REFUSED, "adjust": ADJUST}),
    "mixtral": (
        "Mixtral",
        {"intermediate_size": 224, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"ignore": int4(group_size_fallback="ignore"), "adjust": ADJUST},
    ),
}  # fmt: skip
ALL = [(model, name) for model, (_, _, exports) in MODELS.items() for name in exports]
ACCEPTED = [(model, name) for model, name in ALL if name != "refused" and (model, name) != ("odd_hidden", "ratio")]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("preflight")
    jobs = [job(family, folder / name, exports, **config) for name, (family, config, exports) in MODELS.items()]
    return folder, run_jobs(folder, jobs)


def predict(folder: Path, model: str, name: str) -> Preflight:
    return preflight(read_structure(folder / model / "model"), MODELS[model][2][name], work_folder=folder)


@pytest.mark.parametrize(("model", "name"), ACCEPTED)
def test_size_and_bit_mix_are_those_of_the_real_export(
    real: tuple[Path, dict[str, str]], model: str, name: str
) -> None:
    folder, failures = real
    assert str(folder / model / name) not in failures
    weights, predicted = read_weights(folder / model / name), predict(folder, model, name)
    assert predicted.errors == ()
    assert predicted.bin_bytes == pytest.approx(weights.size_bytes, rel=0.03)
    chance = MODELS[model][2][name].ratio is not None  # which layers NNCF takes depends on the weights
    assert predicted.share_by_type == pytest.approx(weights.share_by_type, abs=0.05 if chance else 1e-9)


@pytest.mark.parametrize(("model", "name"), ALL)
def test_errors_where_nncf_refuses_and_nowhere_else(real: tuple[Path, dict[str, str]], model: str, name: str) -> None:
    folder, failures = real
    failure = failures.get(str(folder / model / name), "")
    assert bool(predict(folder, model, name).errors) == failure.startswith("InvalidGroupSizeError")
    assert bool(failure) == failure.startswith("InvalidGroupSizeError"), failure


@pytest.mark.parametrize("model", [model for model, name in ALL if name == "refused"])
def test_layers_are_exactly_those_that_nncf_names(real: tuple[Path, dict[str, str]], model: str) -> None:
    folder, failures = real
    named = re.findall(r'"__module\.(.+?)/\S+" \(channel size: (\d+)\)', failures[str(folder / model / "refused")])
    predicted = predict(folder, model, "refused").layers
    assert {layer.outcome for layer in predicted} == {"refused"}
    assert sorted((layer.name, layer.channels) for layer in predicted) == sorted((n, int(c)) for n, c in named)


def test_ignored_layers_stay_as_they_are(real: tuple[Path, dict[str, str]]) -> None:
    folder, _ = real
    predicted = predict(folder, "odd_hidden", "ignore").layers
    left = read_weights(folder / "odd_hidden" / "ignore").ignored_layers
    assert {layer.outcome for layer in predicted} == {"floating"}
    assert sorted(layer.name for layer in predicted) == sorted(
        name.removeprefix("self.").removesuffix("._openvino_orig_weight") for name in left
    )


def test_adjusted_group_sizes_are_those_of_the_real_export(real: tuple[Path, dict[str, str]]) -> None:
    folder, _ = real
    for model, sizes in (("odd_down", (32, 64)), ("odd_hidden", (32, 64)), ("mixtral", (32, 64))):
        assert read_weights(folder / model / "adjust").group_sizes["int4_sym"] == sizes
        assert {layer.group_size for layer in predict(folder, model, "adjust").layers} == {32}


def test_a_layer_that_no_group_fits_goes_to_the_backup(real: tuple[Path, dict[str, str]]) -> None:
    folder, _ = real
    predicted = predict(folder, "hopeless", "adjust")
    assert {(layer.channels, layer.outcome) for layer in predicted.layers} == {(144, "backup")}
    assert any("12 layers stay in int8_asym" in finding.message for finding in predicted.findings)


# ---- models that are too large for a test, by their shapes


def llama_like(
    *, hidden: int, inter: int, layers: int, q: int, kv: int, vocab: int, tied: bool, dtype: str = "BF16"
) -> Structure:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for block in (f"model.layers.{index}" for index in range(layers)):
        shapes |= {
            f"{block}.self_attn.q_proj.weight": (q, hidden),
            f"{block}.self_attn.k_proj.weight": (kv, hidden),
            f"{block}.self_attn.v_proj.weight": (kv, hidden),
            f"{block}.self_attn.o_proj.weight": (hidden, q),
            f"{block}.mlp.gate_proj.weight": (inter, hidden),
            f"{block}.mlp.up_proj.weight": (inter, hidden),
            f"{block}.mlp.down_proj.weight": (hidden, inter),
            f"{block}.input_layernorm.weight": (hidden,),
            f"{block}.post_attention_layernorm.weight": (hidden,),
        }
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inter,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }
    return build_structure("a test", config, {name: (dtype, shape) for name, shape in shapes.items()})


SMOLLM2 = llama_like(hidden=576, inter=1536, layers=30, q=576, kv=192, vocab=49152, tied=True)
SMOLLM2_LINEAR = 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576)


@pytest.mark.parametrize(("ratio", "bin_bytes"), [(0.6, 105_444_165), (1.0, 85_001_925)])
def test_smollm2_as_measured(tmp_path: Path, ratio: float, bin_bytes: int) -> None:
    predicted = preflight(SMOLLM2, int4(ratio=ratio), work_folder=tmp_path)
    assert predicted.layers == ()
    assert predicted.bin_bytes == pytest.approx(bin_bytes, rel=0.02)
    expected = ratio * SMOLLM2_LINEAR / (SMOLLM2_LINEAR + 49152 * 576)
    assert predicted.share_by_type["int4_sym"] == pytest.approx(expected, abs=0.01)


def test_message_says_which_value_where_and_what_to_do(tmp_path: Path) -> None:
    predicted = preflight(SMOLLM2, int4(group_size=128, ratio=0.6), work_folder=tmp_path)
    with pytest.raises(PreflightError) as caught:
        predicted.raise_on_error()
    assert str(caught.value) == (
        "export.group_size 128 does not divide 576 (hidden_size of a test; 180 layers, the first is "
        "model.layers.0.self_attn.q_proj); set export.group_size_fallback: adjust, or export.group_size: 64"
    )


def test_advice_works(tmp_path: Path) -> None:
    for advice in (int4(group_size=128, group_size_fallback="adjust"), int4(group_size=64)):
        preflight(SMOLLM2, advice, work_folder=tmp_path).raise_on_error()


def test_nothing_divides_so_one_scale_a_channel_is_advised(tmp_path: Path) -> None:
    structure = llama_like(hidden=100, inter=260, layers=2, q=100, kv=100, vocab=512, tied=True)
    errors = preflight(structure, int4(), work_folder=tmp_path).errors
    assert len(errors) == 1
    assert "does not divide 100 (hidden_size of a test; 12 layers" in errors[0]
    assert "nor 260 (intermediate_size of a test; 2 layers" in errors[0]
    assert errors[0].endswith("or export.group_size: -1 (one scale a channel)")
    assert preflight(structure, int4(group_size=-1), work_folder=tmp_path).layers == ()


def test_a_refusal_that_depends_on_the_weights_is_a_warning(tmp_path: Path) -> None:
    """Only down_proj does not fit 128; with ratio 0.3 NNCF may have enough before it comes to one."""
    structure = llama_like(hidden=512, inter=1056, layers=4, q=512, kv=512, vocab=512, tied=True)
    maybe = preflight(structure, int4(group_size=128, ratio=0.3), work_folder=tmp_path)
    surely = preflight(structure, int4(group_size=128, ratio=0.9), work_folder=tmp_path)
    assert maybe.errors == ()
    assert [f.level for f in maybe.findings if "does not divide 1056" in f.message] == ["warning"]
    assert len(surely.errors) == 1


def phi3_mini() -> Structure:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32064, 3072), "lm_head.weight": (32064, 3072)}
    for block in (f"model.layers.{index}" for index in range(32)):
        shapes |= {
            f"{block}.self_attn.qkv_proj.weight": (9216, 3072),
            f"{block}.self_attn.o_proj.weight": (3072, 3072),
            f"{block}.mlp.gate_up_proj.weight": (16384, 3072),
            f"{block}.mlp.down_proj.weight": (3072, 8192),
        }
    config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "torch_dtype": "bfloat16"}
    return build_structure("phi3", config, {name: ("BF16", shape) for name, shape in shapes.items()})


def test_phi3_mini_takes_the_notebooks_group_size(tmp_path: Path) -> None:
    predicted = preflight(phi3_mini(), int4(group_size=128, ratio=0.6), work_folder=tmp_path)
    assert predicted.layers == ()
    assert [f.message for f in predicted.findings if "128" in f.message] == [
        "export.group_size 128 divides the input channels of every layer"
    ]
    linear, outer = 32 * 3072 * (9216 + 3072 + 16384 + 8192), 2 * 32064 * 3072
    assert predicted.share_by_type["int4_sym"] == pytest.approx(0.6 * linear / (linear + outer), abs=0.01)


def test_tied_output_layer_in_the_file_counts_once(tmp_path: Path) -> None:
    doubled = {**SMOLLM2.tensors, "lm_head.weight": ("BF16", (49152, 576))}
    structure = build_structure("a test", SMOLLM2.config, doubled)
    assert preflight(structure, int4(), work_folder=tmp_path).bin_bytes == preflight(
        SMOLLM2, int4(), work_folder=tmp_path
    ).bin_bytes  # fmt: skip


def test_quantised_checkpoint_and_missing_class_are_warned_of(tmp_path: Path) -> None:
    tensors = {**SMOLLM2.tensors, "model.layers.0.mlp.up_proj.qweight": ("I32", (72, 1536))}
    structure = build_structure("a test", {"model_type": "llama"}, tensors)
    warnings = [f.message for f in preflight(structure, int4(), work_folder=tmp_path).findings if f.level == "warning"]
    assert "already quantised (tensors of type I32)" in warnings[0]
    assert "has no architectures" in warnings[1]


def test_no_language_model_is_refused(tmp_path: Path) -> None:
    structure = build_structure("a test", {"model_type": "x"}, {"norm.weight": ("F32", (8,))})
    with pytest.raises(PreflightError, match="no linear layer and no embedding"):
        preflight(structure, int4(), work_folder=tmp_path)


# ---- disk and memory


def test_disk_holds_the_float_model_and_the_compressed_one(tmp_path: Path) -> None:
    predicted = preflight(SMOLLM2, RATIO, work_folder=tmp_path / "not" / "yet" / "there")
    parameters = SMOLLM2_LINEAR + 49152 * 576
    assert predicted.disk_needed_bytes == pytest.approx(2 * parameters + predicted.bin_bytes + 64e6, rel=0.01)
    assert predicted.disk_free_bytes > 0


def test_full_disk_is_an_error(tmp_path: Path) -> None:
    assert on_disk(5_000_000_000, 4_900_000_000, tmp_path).level == "error"
    assert "needs 5.0 GB of disk" in on_disk(5_000_000_000, 4_900_000_000, tmp_path).message
    assert on_disk(5_000_000_000, 5_000_000_000, tmp_path).level == "ok"


def test_scarce_memory_warns_and_none_refuses() -> None:
    needs = Needs(bin_bytes=0, disk_bytes=0, peak_memory_bytes=4_000_000_000, least_memory_bytes=1_000_000_000)
    assert on_memory(needs, 4_000_000_000, swap_free=0).level == "ok"
    assert on_memory(needs, 3_900_000_000, swap_free=0).level == "warning"
    assert on_memory(needs, 900_000_000, swap_free=0).level == "error"
    assert on_memory(needs, 900_000_000, swap_free=100_000_000).level == "warning"


# ---- checkpoint folders that are not right


def safetensors(tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """A file of zeros: name -> (dtype, shape, bytes)."""
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


GOOD = safetensors({"lm_head.weight": ("BF16", (4, 8), 64), "model.norm.weight": ("F32", (8,), 32)})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(GOOD)
    return tmp_path


def test_reads_types_and_shapes(checkpoint: Path) -> None:
    structure = read_structure(checkpoint)
    assert structure.tensors == {"lm_head.weight": ("BF16", (4, 8)), "model.norm.weight": ("F32", (8,))}
    assert structure.config["model_type"] == "llama"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json is not JSON"),
        ("[]", "must hold a JSON object, it holds a list"),
        ("{}", "has no model_type"),
        ('{"model_type": 3}', "has no model_type"),
        ("\x00", "config.json is not JSON"),
    ],
)
def test_wrong_config_is_refused(checkpoint: Path, config: str, message: str) -> None:
    (checkpoint / "config.json").write_text(config)
    with pytest.raises(PreflightError, match=message):
        read_structure(checkpoint)


def test_missing_config_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(PreflightError, match=r"config\.json is missing: save the model"):
        read_structure(checkpoint)


def test_weights_that_are_not_safetensors_are_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(PreflightError, match=r"only pytorch_model\.bin, which vinoflow does not open"):
        read_structure(checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"\xff" * 100, "claims a header of 18446744073709551615"),
        (GOOD[:20], "claims a header of"),
        (struct.pack("<Q", 4) + b"abcd", "header cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "it is a list"),
        (struct.pack("<Q", 2) + b"{}", "has no tensors"),
        (GOOD[:-1], "describes 96 bytes of weights, it has 95"),
        (GOOD + b"\0", "describes 96 bytes of weights, it has 97"),
        (safetensors({"a.weight": ("F32", (4, 8), 64)}), "cannot have 64 bytes"),
        (safetensors({"a.weight": ("F32", (-4, -8), 128)}), "is described as"),
        (safetensors({"a.weight": (7, (4, 8), 128)}), "is described as"),  # type: ignore[dict-item]
    ],
)
def test_garbage_weights_are_refused(checkpoint: Path, content: bytes, message: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(PreflightError, match=message) as caught:
        read_structure(checkpoint)
    assert str(checkpoint) in str(caught.value)


def shard(checkpoint: Path, weight_map: object) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_by_their_index(checkpoint: Path) -> None:
    shard(checkpoint, {"lm_head.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"})
    (checkpoint / "model-2.safetensors").write_bytes(safetensors({"b.weight": ("F16", (2, 2), 8)}))
    assert set(read_structure(checkpoint).tensors) == {"lm_head.weight", "model.norm.weight", "b.weight"}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-1.safetensors", "b": "model-2.safetensors"}, r"1 of 2 files .* missing, the first is model-2"),
        ({"a": "../model-1.safetensors"}, "no safetensors file beside it"),
        ({"a": "model-1.bin"}, "no safetensors file beside it"),
        ({"a": 3}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_wrong_index_is_refused(checkpoint: Path, weight_map: object, message: str) -> None:
    shard(checkpoint, weight_map)
    with pytest.raises(PreflightError, match=message):
        read_structure(checkpoint)


def test_hub_shapes_that_are_no_shapes_are_refused() -> None:
    with pytest.raises(PreflightError, match="sizes cannot be negative"):
        build_structure("a hub", {"model_type": "llama"}, {"a.weight": ("F32", (-1, 4))})
    with pytest.raises(PreflightError, match="not described properly"):
        build_structure("a hub", {"model_type": "llama"}, {"a.weight": ("F32", ("x",))})  # type: ignore[dict-item]


@given(header=st.binary(max_size=200))
def test_any_bytes_as_a_file_raise_our_error(tmp_path_factory: pytest.TempPathFactory, header: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises(PreflightError):
        read_structure(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["lm_head.weight", ".weight", "a.experts.0.w.weight", "model.layers.0.q_proj.weight", "wte", "."]
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I32", "NEW"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=4) | JSON,
        "data_offsets": st.tuples(st.integers(0, 40), st.integers(0, 40)) | JSON,
    }
)


@given(entries=st.dictionaries(NAMES | st.text(max_size=8), ENTRIES | JSON, max_size=4), config=JSON)
def test_any_json_as_header_raises_our_error_or_is_predicted(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, object], config: object
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        tensors = read_header(json.dumps(entries).encode(), where="somewhere")
        details = {"text_config": config, "dtype": config, "hidden_size": config, "tie_word_embeddings": config}
        structure = build_structure("somewhere", {"model_type": "gpt2", **details}, tensors)
        predicted = preflight(structure, int4(ratio=0.5, all_layers=True), work_folder=folder)
    except PreflightError as error:
        assert "somewhere" in str(error)
    else:
        assert predicted.bin_bytes >= 0


def test_a_70b_model_of_many_shards_needs_no_heavy_library(tmp_path: Path) -> None:
    """80 layers in 160 shards of sparse files; the process that reads them must not have imported torch or such."""
    structure = llama_like(hidden=8192, inter=28672, layers=80, q=8192, kv=1024, vocab=128256, tied=False)
    (tmp_path / "config.json").write_text(json.dumps(structure.config))
    names, weight_map = sorted(structure.tensors), {}
    for number in range(160):
        part, header, end = f"model-{number}.safetensors", {}, 0
        for name in names[number::160]:
            dtype, shape = structure.tensors[name]
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            weight_map[name], end = part, end + size
        text = json.dumps(header).encode()
        with (tmp_path / part).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    code = (
        "import sys; from pathlib import Path; from tasks.config import Export\n"
        "from tasks.preflight import preflight, read_structure\n"
        "folder = Path(sys.argv[1])\n"
        "found = preflight(read_structure(folder), Export(weight_format='int4', ratio=0.8), work_folder=folder)\n"
        "heavy = {'torch', 'transformers', 'openvino', 'optimum', 'numpy', 'safetensors', 'huggingface_hub'}\n"
        "print(found.bin_bytes, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    bin_bytes, heavy = done.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert int(bin_bytes) == pytest.approx(43.1e9, rel=0.05)
