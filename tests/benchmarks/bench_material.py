"""What bench_mutations measures with: each sabotage does what it says, to nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.config import Export
from tasks.errors import IntegrityError
from tasks.export import export
from tasks.manifest import digest_of, read_manifest, verify
from tasks.metrics import METRICS
from tasks.records import ExportedModel
from tests.conftest import link_tree
from tests.gpu_shim.build import FAULTS
from tests.sabotage import DEVICE_FAULTS, GOOD, SABOTAGES, sabotaged
from tests.sabotage.constants import Arrays, constants

MODEL = {"openvino_model.xml", "openvino_model.bin"}
TOKENIZER = {"openvino_tokenizer.xml", "openvino_tokenizer.bin"}
DETOKENIZER = {"openvino_detokenizer.xml", "openvino_detokenizer.bin"}
HUGGING_FACE = {"tokenizer.json", "tokenizer_config.json"}
TEMPLATE = {"openvino_tokenizer.xml", "tokenizer_config.json", "chat_template.jinja"}
LAYERS = "self.model.layers."

pytestmark = pytest.mark.bench
Made = Callable[[str], ExportedModel]


@pytest.fixture(scope="module")
def original(smollm2_export: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arrays]:
    folder = tmp_path_factory.mktemp("original") / "model"
    link_tree(smollm2_export.path, folder)
    yield constants(folder)
    shutil.rmtree(folder)


@pytest.fixture
def made(
    smollm2_export: ExportedModel, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Made]:
    """Make a sabotaged copy, whose manifest is in order; its original must be untouched afterwards."""
    monkeypatch.setenv("VINOFLOW_CACHE", str(shared_cache))

    def make(name: str) -> ExportedModel:
        copy = sabotaged(name, smollm2_export, tmp_path / name)
        if SABOTAGES[name].in_manifest:
            assert copy.digest != smollm2_export.digest
            verify(copy.path, read_manifest(copy.path, digest=copy.digest))
        return copy

    yield make
    shutil.rmtree(tmp_path)  # some 100 MB a copy
    verify(smollm2_export.path, read_manifest(smollm2_export.path, digest=smollm2_export.digest))


def changed_files(exported: ExportedModel, copy: ExportedModel) -> set[str]:
    old, new = ({entry.name: entry.sha256 for entry in read_manifest(one.path).files} for one in (exported, copy))
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def changed_constants(copy: ExportedModel, original: Arrays) -> Arrays:
    now = constants(copy.path)
    assert now.keys() == original.keys()
    return {name: now[name] for name in now if now[name].tobytes() != original[name].tobytes()}


def in_layer(number: int, *endings: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(f"{LAYERS}{number}.") and name.endswith(endings)


def anywhere(*endings: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(LAYERS) and name.endswith(endings)


# What a sabotage changes among the constants, how many of them, and what each becomes.
WEIGHTS: dict[str, tuple[Callable[[str], bool], int, Callable[[Any], Any]]] = {
    "layer_dropped": (in_layer(15, "o_proj.weight/scale", "down_proj.weight/scale"), 2, lambda old: 0 * old),
    "scales_zeroed": (in_layer(1, "_proj.weight/scale"), 3, lambda old: 0 * old),
    "scales_doubled": (in_layer(15, "/scale"), 7, lambda old: 2 * old),
    "embeddings_shifted": (lambda name: "embed_tokens" in name, 3, lambda old: np.roll(old, 1, axis=0)),
    "last_norm_reversed": (lambda name: name.startswith("__module.model.norm/"), 1, lambda old: old[..., ::-1]),
    "rope_theta_of_llama": (
        lambda name: "rotary_emb" in name,
        1,
        lambda old: np.float32(1e4 ** (-np.arange(32) / 32)).reshape(old.shape),
    ),
    "softmax_scale": (anywhere("q_proj.weight/scale"), 30, lambda old: 2 * old),
    "stop_row_zeroed": (
        lambda name: name.endswith("embed_tokens.weight/scale"),
        1,
        lambda old: np.where(np.arange(len(old))[:, None] == 2, 0, old),
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_becomes_of_the_constants(name: str, made: Made, smollm2_export: ExportedModel, original: Arrays) -> None:
    copy = made(name)
    assert changed_files(smollm2_export, copy) == {"openvino_model.bin"}
    chosen, count, becomes = WEIGHTS[name]
    changed = changed_constants(copy, original)
    assert len(changed) == count and all(map(chosen, changed))
    for key, array in changed.items():
        np.testing.assert_allclose(array, becomes(original[key]), rtol=1e-5)


def test_two_layers_change_places(made: Made, original: Arrays) -> None:
    changed = changed_constants(made("layers_swapped"), original)
    assert len(changed) > 14 and all(name.startswith((f"{LAYERS}8.", f"{LAYERS}9.")) for name in changed)
    for name, array in changed.items():
        other = (
            name.replace("layers.8.", "layers.X.").replace("layers.9.", "layers.8.").replace("layers.X.", "layers.9.")
        )
        np.testing.assert_array_equal(array, original[other])


@pytest.mark.parametrize("name", ["nan_in_a_scale", "nan_that_the_cpu_hides", "inf_in_a_scale"])
def test_one_number_is_none(name: str, made: Made, original: Arrays) -> None:
    ((key, array),) = changed_constants(made(name), original).items()
    assert key.endswith("/scale")
    assert (array != original[key]).sum() == (~np.isfinite(array)).sum() == 1


def test_the_halves_of_bytes_change_places(made: Made, original: Arrays) -> None:
    changed = changed_constants(made("nibbles_swapped"), original)
    assert changed and all(name.startswith(f"{LAYERS}15.") for name in changed)
    for name, array in changed.items():
        assert original[name].dtype == np.uint8 and original[name].ndim == 3
        np.testing.assert_array_equal(array // 16, original[name] % 16)
        np.testing.assert_array_equal(array % 16, original[name] // 16)


def test_rows_of_heads_change_places(made: Made, original: Arrays) -> None:
    rolled = changed_constants(made("value_heads_rolled"), original)
    assert len(rolled) >= 60 and all(".v_proj." in name for name in rolled)
    for name, array in rolled.items():
        np.testing.assert_array_equal(array[64:], original[name][:-64])
    turned = changed_constants(made("rotary_interleaved"), original)
    assert len(turned) >= 120 and all(".q_proj." in name or ".k_proj." in name for name in turned)
    for name, array in turned.items():
        np.testing.assert_array_equal(array[[0, 1, 2, 63, 64]], original[name][[0, 32, 1, 63, 64]])


def test_untrained_weights_have_the_values_of_trained_ones(made: Made, original: Arrays) -> None:
    changed = changed_constants(made("untrained"), original)
    assert len(changed) == 210 and all(name.endswith(".weight") for name in changed)
    name = f"{LAYERS}3.mlp.up_proj.weight"
    np.testing.assert_array_equal(np.sort(changed[name], axis=None), np.sort(original[name], axis=None))


def test_a_truncated_file_is_not_what_its_manifest_says(made: Made, smollm2_export: ExportedModel) -> None:
    copy = made("bin_truncated")
    assert copy.digest == smollm2_export.digest
    with pytest.raises(IntegrityError, match=r"openvino_model\.bin has 70\d* bytes, its manifest says 105"):
        verify(copy.path, read_manifest(copy.path, digest=copy.digest))


def infer(copy: ExportedModel, *positions: int) -> Any:
    import openvino

    request = openvino.Core().compile_model(copy.path / "openvino_model.xml", "CPU").create_infer_request()
    ids = np.array([[504] * len(positions)])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.array([positions])}
    answers = []
    for _ in range(2):
        request.reset_state()
        answers.append(request.infer({**inputs, "beam_idx": np.zeros(1, np.int32)})["logits"][0].copy())
    return answers


def test_graphs_with_faults(made: Made, smollm2_export: ExportedModel) -> None:
    right, again = infer(smollm2_export, 1000, 1001)
    np.testing.assert_array_equal(right, again)
    far, _ = infer(made("nan_far_on"), 1000, 1001)
    np.testing.assert_array_equal(far[0], right[0])
    assert np.isnan(far[1]).all()
    once, twice = infer(made("random_logits"), 1000, 1001)
    assert (once != twice).mean() > 0.9
    assert 1 < np.abs(once - right).max() < 2.1


CONFIGS = {"config.json", "generation_config.json"}
# Which files a sabotage of the tokens changes, and what the engine sees of it.
TOKENS: dict[str, tuple[set[str], set[str]]] = {
    "tokenizer_derived_from_gguf": (TOKENIZER | DETOKENIZER | HUGGING_FACE, {"ids", "text", "tokenizer's eos"}),
    "tokenizer_without_special_tokens": (TOKENIZER, {"ids"}),
    "tokenizer_in_lower_case": (TOKENIZER, {"ids"}),
    "detokenizer_of_another_model": (DETOKENIZER, {"text"}),
    "detokenizer_with_special_tokens": (DETOKENIZER, {"text"}),
    "template_dropped": (TEMPLATE, {"chat"}),
    "template_without_generation_prompt": (TEMPLATE, {"chat"}),
    "template_of_another_model": (TEMPLATE, {"chat"}),
    "eos_wrong": (CONFIGS | {"openvino_tokenizer.xml"}, {"eos", "tokenizer's eos"}),
    "eos_missing": (CONFIGS | {"openvino_tokenizer.xml"}, {"eos", "tokenizer's eos"}),
    "eos_of_two_minds": ({"generation_config.json"}, {"eos"}),
}


@pytest.mark.parametrize("name", TOKENS)
def test_what_the_engine_reads(name: str, made: Made, smollm2_export: ExportedModel) -> None:
    copy = made(name)
    files, told = TOKENS[name]
    assert changed_files(smollm2_export, copy) == files
    right, wrong = read_by_the_engine(smollm2_export.path), read_by_the_engine(copy.path)
    assert {key for key in right if right[key] != wrong[key]} == told


def read_by_the_engine(folder: Path) -> dict[str, Any]:
    from openvino_genai import Tokenizer

    tokenizer = Tokenizer(folder)
    return {
        "ids": tokenizer.encode("<|im_start|>user\nIs 1999 a prime?<|im_end|>\n").input_ids.data.tolist(),
        "text": tokenizer.decode([504, 3575, 282, 4649, 2]),
        "eos": json.loads((folder / "generation_config.json").read_bytes()).get("eos_token_id"),
        "tokenizer's eos": tokenizer.get_eos_token_id(),
        "chat": tokenizer.chat_template and tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], True),
    }


def test_int4_without_groups_or_backup(made: Made, smollm2_export: ExportedModel) -> None:
    copy = made("int4_without_groups_or_backup")
    assert copy.checkpoint == smollm2_export.checkpoint
    assert copy.weights.share_by_type == {"int4_sym": 1.0}
    assert copy.weights.group_sizes == {"int4_sym": (-1,)}


def test_noise_of_a_tenth(made: Made, smollm2_export: ExportedModel, tmp_path: Path) -> None:
    noisy = constants(made("float_with_noise").path)
    link_tree(export(smollm2_export.checkpoint, Export(weight_format="fp16")).path, tmp_path / "right")
    right = constants(tmp_path / "right")
    changed = {name for name in right if noisy[name].tobytes() != right[name].tobytes()}
    assert len(changed) == 211 and all(".weight" in name for name in changed)
    for name in changed:
        old, new = right[name].astype(np.float32), noisy[name].astype(np.float32)
        assert (new - old).std() == pytest.approx(0.1 * old.std(), rel=0.02)


def test_another_model(made: Made, smollm2_export: ExportedModel) -> None:
    copy = made("another_model")
    assert copy.checkpoint == smollm2_export.checkpoint
    assert json.loads((copy.path / "config.json").read_bytes())["vocab_size"] == 512
    assert copy.weights.size_bytes < 1_000_000


def test_the_lists_are_in_order() -> None:
    assert len(SABOTAGES) >= 30
    assert len({digest_of(settings.model_dump(mode="json")) for settings in GOOD.values()}) == 20
    assert DEVICE_FAULTS.keys() == FAULTS.keys()
    told = {name for found in SABOTAGES.values() for name in found.told_by}
    assert told | {name for names in DEVICE_FAULTS.values() for name in names} <= METRICS.keys()
    assert all(found.text for found in SABOTAGES.values())
