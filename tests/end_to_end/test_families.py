"""Breadth: tiny models of several families through download, int4 export, load and generate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config import Export, LocalSource
from tasks.download import download
from tasks.export import export
from tasks.recipe_file import load_recipe
from tasks.validate import validate
from tests.conftest import write_tiny_recipe
from tests.tiny import FAMILIES, make_tiny

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_the_whole_way(family: str, home: Path, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family)
    recipe = load_recipe(write_tiny_recipe(tmp_path, folder, name=f"tiny-{family}", min_tokens=1))
    checkpoint = download(recipe.source)
    exported = export(checkpoint, recipe.export)
    assert exported.weights.share_by_type["int4_sym"] > 0.1
    report = validate(exported, recipe)
    assert report.passed
    assert report.prompts[0].prompt == "<|user|>Hello<|end|><|assistant|>"
    assert 1 <= len(report.prompts[0].answer.token_ids) <= 8


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_agrees_with_torch_beyond_optimums_cap(family: str, home: Path, tmp_path: Path) -> None:
    """Our worker lifts optimum-intel's cap on transformers for gemma: this is what makes that right."""
    import torch
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoModelForCausalLM

    folder = make_tiny(family, tmp_path / family)
    exported = export(download(LocalSource(kind="local", path=folder)), Export(weight_format="fp32"))
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    ids = torch.randint(6, 400, (1, 40), generator=torch.Generator().manual_seed(1))
    candidate = OVModelForCausalLM.from_pretrained(exported.path, ov_config=exact)
    source = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        difference = (source(ids).logits - candidate(ids, attention_mask=torch.ones_like(ids)).logits).abs().max()
    assert difference < 1e-5
