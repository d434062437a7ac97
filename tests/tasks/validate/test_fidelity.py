"""The comparison of real models, against what torch and OpenVINO say when they are asked plainly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.config import LocalSource, Message
from tasks.download import download
from tasks.engine import Engine, Request
from tasks.errors import EngineError, WorkerError
from tasks.records import Checkpoint, ExportedModel
from tasks.validate.comparing import EXACT
from tasks.validate.fidelity import Compiled, Job, compare_models
from tasks.validate.passages import Passage
from tasks.validate.reference import Reference, StoredLogits, score_source
from tests.tiny import make_tiny

pytestmark = pytest.mark.slow


def passages(count: int = 3, tokens: int = 40, *, vocabulary: int = 500) -> list[Passage]:
    random = np.random.default_rng(0)
    return [
        Passage(ids=tuple(random.integers(6, vocabulary, size=tokens + number).tolist()), start=1 + 5 * number)
        for number in range(count)
    ]


def torch_logits(folder: Path, found: Sequence[Passage]) -> NDArray[np.float32]:
    """Logits of all scored positions, by one plain forward pass each."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        parts = [model(torch.tensor([one.ids])).logits[0, one.start - 1 : -1].numpy() for one in found]
    return np.concatenate(parts)


def openvino_logits(folder: Path, found: Sequence[Passage]) -> NDArray[np.float32]:
    """The same of an exported model, each passage read in one piece."""
    import openvino

    request = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", EXACT).create_infer_request()
    parts = []
    for one in found:
        request.reset_state()
        ids = np.array([one.ids], np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "beam_idx": np.zeros(1, np.int32)}
        if any("position_ids" in port.get_names() for port in request.model_inputs):
            inputs["position_ids"] = np.arange(ids.shape[1])[None]
        logits = request.infer(inputs)["logits"]
        parts.append(logits[0, one.start - 1 : -1].copy())
    return np.concatenate(parts)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINOFLOW_CACHE", str(cache))


def scored(checkpoint: Checkpoint, found: Sequence[Passage], *, name: str = "text") -> Reference:
    return score_source(checkpoint, found, name=name, precision="fp32", timeout_s=300)


def test_every_position_agrees_with_a_plain_computation(tiny_export: ExportedModel) -> None:
    found = passages()
    reference = scored(tiny_export.checkpoint, found)
    side = Compiled(folder=tiny_export.path, device="CPU", ov_config=EXACT)
    jobs = [
        Job(name="text", reference=reference, passages=tuple(found)),
        Job(name="itself", reference=side, passages=tuple(found)),
    ]
    comparison, itself = compare_models(side, jobs, stop_ids=[2], timeout_s=300)
    p = log_softmax(torch_logits(tiny_export.checkpoint.path, found))
    q = log_softmax(openvino_logits(tiny_export.path, found))
    actual = np.concatenate([one.ids[one.start :] for one in found])
    rows = np.arange(len(actual))
    assert comparison.lengths == [39, 35, 31]
    np.testing.assert_allclose(comparison.arrays["kl"], (np.exp(p) * (p - q)).sum(axis=1), atol=1e-6)
    np.testing.assert_allclose(comparison.arrays["nll"], -q[rows, actual], atol=1e-5)
    np.testing.assert_allclose(comparison.arrays["source_nll"], -p[rows, actual], atol=1e-5)
    np.testing.assert_allclose(comparison.arrays["stop_probability"], np.exp(p[:, 2]), atol=1e-6)
    assert (comparison.arrays["source_top"] == p.argmax(axis=1)).all()
    assert (comparison.of(1, 2).arrays["kl"] == comparison.arrays["kl"][39:74]).all()
    assert itself.arrays["kl"].max() < 1e-12

    (again,) = compare_models(side, jobs[:1], stop_ids=[2], timeout_s=300)
    for name, values in comparison.arrays.items():
        assert (values == again.arrays[name]).all(), name


def test_the_source_is_asked_once(tiny_export: ExportedModel) -> None:
    found = passages(2, 30)
    first = scored(tiny_export.checkpoint, found)
    again = scored(tiny_export.checkpoint, found)
    assert (first.cached, again.cached) == (False, True)
    assert scored(tiny_export.checkpoint, passages(2, 31)).cached is False

    states = first.folder / "states.npy"  # a damaged one is made again, not believed
    content = bytearray(states.read_bytes())
    content[-1] ^= 1
    states.write_bytes(content)
    assert scored(tiny_export.checkpoint, found).cached is False


@pytest.mark.parametrize("family", ["gemma2", "cohere", "gpt2"])
def test_the_last_projection_of_other_families(family: str, tmp_path: Path) -> None:
    """A soft cap, a factor, and tied weights under another name."""
    folder = make_tiny(family, tmp_path / family)
    checkpoint = download(LocalSource(kind="local", path=folder))
    found = passages(1)
    stored = StoredLogits(scored(checkpoint, found))
    logits = stored.block(slice(None), slice(0, stored.vocabulary))
    np.testing.assert_allclose(logits, torch_logits(checkpoint.path, found), atol=1e-5)


def test_a_source_that_cannot_be_loaded_says_what_to_do(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": 96}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkerError, match="reference: none validates without it"):
        scored(download(LocalSource(kind="local", path=folder)), passages(1))


def test_a_model_that_does_not_run_is_an_engine_error(tiny_export: ExportedModel, tmp_path: Path) -> None:
    side = Compiled(folder=tmp_path, device="CPU", ov_config={})
    with pytest.raises(EngineError, match="cannot be compared on CPU"):
        compare_models(side, [Job(name="itself", reference=side, passages=tuple(passages(1)))], timeout_s=60)


def test_the_first_divergent_token_is_where_the_source_s_own_answer_parts(smollm2_export: ExportedModel) -> None:
    """Against a real greedy generation by the source model."""
    import torch
    from transformers import AutoModelForCausalLM

    questions = (
        "What is the capital of France?",
        "Write a Python function that adds two numbers.",
        "Count from 1 to 10.",
    )
    requests = [Request(messages=(Message(role="user", content=text),), max_new_tokens=24) for text in questions]
    with Engine(smollm2_export.path, device="CPU") as engine:
        completions = [engine.answer(request) for request in requests]
    found = [Passage(ids=(*one.prompt_ids, *one.answer.token_ids), start=len(one.prompt_ids)) for one in completions]
    reference = scored(smollm2_export.checkpoint, found, name="answers")
    side = Compiled(folder=smollm2_export.path, device="CPU", ov_config={})
    job = Job(name="answers", reference=reference, passages=tuple(found))
    (comparison,) = compare_models(side, [job], stop_ids=[2], timeout_s=300)
    ways = json.loads((reference.folder / "ways.json").read_text())

    model = AutoModelForCausalLM.from_pretrained(smollm2_export.checkpoint.path, dtype=torch.float32).eval()
    parted = []
    for number, (completion, way) in enumerate(zip(completions, ways, strict=True)):
        said = list(completion.answer.token_ids)
        prompt = torch.tensor([completion.prompt_ids])
        given = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=48, do_sample=False)
        own = given[0, prompt.shape[1] :].tolist()
        expected = next((at for at, (one, other) in enumerate(zip(said, own, strict=False)) if one != other), None)
        tops = comparison.of(number, number + 1).arrays["source_top"]
        assert next((at for at, (one, top) in enumerate(zip(said, tops, strict=True)) if one != top), None) == expected
        assert way["position"] == expected
        if expected is not None:
            assert way["ids"] == own[expected : expected + len(way["ids"])]
            parted.append(expected)
    assert parted  # int4 does part somewhere
