from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import Recipe
from tasks.errors import RecipeError
from tasks.recipe_file import load_recipe

ROOT = Path(__file__).parents[2]
MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "source": {"kind": "local", "path": "model"},
    "export": {"weight_format": "int4"},
    "validation": {"prompts": [{"id": "one", "prompt": "Hello"}]},
}


def write(tmp_path: Path, **changes: Any) -> Path:
    """Write the minimal recipe with `export__ratio=2` and the like changed."""
    data = yaml.safe_load(yaml.safe_dump(MINIMAL))
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_named_as_their_files(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_as_a_run_keeps_it_is_the_same_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    kept = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    assert Recipe.model_validate(yaml.safe_load(kept)) == recipe


def test_phi3_states_the_notebook_word_for_word() -> None:
    recipe = load_recipe(ROOT / "configs" / "phi-3-mini-4k-instruct.yaml")
    assert recipe.source.model_dump()["repository"] == "microsoft/Phi-3-mini-4k-instruct"
    stated = recipe.export.model_dump(
        include={"task", "weight_format", "group_size", "ratio", "sym", "trust_remote_code"}
    )
    assert stated == {
        "task": "text-generation-with-past",
        "weight_format": "int4",
        "group_size": 128,
        "ratio": 0.6,
        "sym": True,
        "trust_remote_code": True,
    }
    assert recipe.validation.device == "GPU.0"
    assert recipe.validation.on_missing_device == "fail"
    assert recipe.validation.ov_config == {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""}
    assert recipe.validation.max_new_tokens == 1024
    prompt = recipe.validation.prompts[0]
    assert prompt.prompt == (
        "<|system|>You are a helpful AI assistant.<|end|><|user|>can you introduce yourself?<|end|><|assistant|>"
    )
    assert prompt.add_special_tokens is False


def test_tuned_recipe_is_optimums_own_default() -> None:
    from optimum.intel.openvino.configuration import _DEFAULT_4BIT_WQ_CONFIGS

    default = _DEFAULT_4BIT_WQ_CONFIGS["microsoft/Phi-3-mini-4k-instruct"]
    export = load_recipe(ROOT / "configs" / "phi-3-mini-4k-instruct-tuned.yaml").export
    assert {name: getattr(export, name) for name in default if name != "bits"} == {
        name: value for name, value in default.items() if name != "bits"
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Has Space"}, ["name", "Has Space"]),
        ({"surprise": 1}, ["surprise is not a field"]),
        ({"export__weight_format": "int3"}, ["export.weight_format", "int3"]),
        ({"export__ratio": 1.5}, ["export.ratio", "1.5"]),
        ({"export__group_size": 0}, ["export.group_size", "0"]),
        ({"export__weight_format": "int8", "export__group_size": 64}, ["group_size", "no effect", "int8"]),
        ({"export__weight_format": "fp16", "export__sym": True}, ["sym", "fp16"]),
        ({"export__scale_estimation": True}, ["scale_estimation", "export.dataset"]),
        ({"export__sensitivity_metric": "hessian_input_activation"}, ["sensitivity_metric", "dataset"]),
        ({"export__num_samples": 8}, ["num_samples", "dataset"]),
        ({"export__trust_remote_code": True}, ["trust_remote_code", "40-hex"]),
        ({"source": {"kind": "ftp"}}, ["source", "kind", "hub"]),
        ({"source": {"kind": "hub", "repository": "no-owner", "revision": "main"}}, ["repository", "no-owner"]),
        ({"validation__device": "AUTO:GPU,CPU"}, ["validation.device", "AUTO"]),
        ({"validation__device": "AUTO"}, ["validation.device", "silence"]),
        ({"validation__gates": {"speed": {"min": 1}}}, ["no metric", "speed", "vinoflow schema"]),
        ({"validation__gates": {"text_kl_men": {"max": 1}}}, ["text_kl_men", "did you mean text_kl_mean"]),
        ({"validation__gates": {"ttft_ms": {}}}, ["min, max"]),
        ({"validation__gates": {"text_kl_mean": {"max": 1}}}, ["gates.text_kl_mean needs a text", "validation.text"]),
        (
            {"validation__gates": {"fdt_median": {"min": 1}}, "validation__reference": "none"},
            ["gates.fdt_median needs the source model", "reference is none"],
        ),
        ({"validation__noise_floor": True}, ["noise_floor needs the source model and a text"]),
        ({"validation__text": "nowhere.txt"}, ["nowhere.txt", "no such file"]),
        ({"validation__prompts": []}, ["validation.prompts"]),
        ({"validation__prompts": [{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}]}, ["two prompts", "'a'"]),
        ({"validation__prompts": [{"id": "a"}]}, ["either messages or prompt"]),
        ({"validation__prompts": [{"id": "a", "prompt": "x", "expect": {"regex": "("}}]}, ["regular expression"]),
        ({"validation__prompts": "nowhere.yaml"}, ["nowhere.yaml", "no such file"]),
    ],
)
def test_bad_fields_are_named_with_value_and_way_out(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    for word in words:
        assert word in str(caught.value)


def test_remote_code_is_allowed_at_a_commit_only(tmp_path: Path) -> None:
    source = {"kind": "hub", "repository": "a/b", "revision": "main"}
    with pytest.raises(RecipeError, match="40-hex"):
        load_recipe(write(tmp_path, source=source, export__trust_remote_code=True))
    source["revision"] = "0" * 40
    assert load_recipe(write(tmp_path, source=source, export__trust_remote_code=True)).export.trust_remote_code


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", "given twice"),
        ("name: [", "is not YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("{a: 1, ? [x]: 2}", "not YAML|not a field|missing"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    ],
)
def test_what_is_no_recipe_is_said_so(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "gone.yaml")


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_give_a_recipe_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_digest_follows_content_not_layout(tmp_path: Path) -> None:
    first = load_recipe(write(tmp_path))
    path = write(tmp_path)
    path.write_text("# a comment\n" + path.read_text())
    assert load_recipe(path).digest == first.digest
    assert load_recipe(write(tmp_path, export__ratio=0.5)).digest != first.digest


def test_schema_describes_every_field() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == {"name", "source", "export", "validation", "registry"}
    for name, definition in schema["$defs"].items():
        if name in ("Export", "Validation", "HubSource", "LocalSource", "WheelSource"):
            for field, content in definition["properties"].items():
                assert content.get("description") or field == "kind", f"{name}.{field} has no description"


def test_built_in_gates_can_be_changed_and_switched_off(tmp_path: Path) -> None:
    gates = {"looping_share": None, "engine_failures": {"max": 1}, "ttft_ms": {"max": 500}}
    validation = load_recipe(write(tmp_path, validation__gates=gates)).validation
    assert validation.all_gates["engine_failures"].max == 1
    assert validation.all_gates["ttft_ms"].max == 500
    assert "looping_share" not in validation.all_gates
    assert validation.all_gates["prompts_passed_share"].min == 1
    assert "missed_stops" in validation.all_gates
    without = load_recipe(write(tmp_path, validation__reference="none")).validation.all_gates
    assert "missed_stops" not in without and "nonfinite_logits" in without


def test_a_text_is_read_from_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("It was a dark night.")
    assert load_recipe(write(tmp_path, validation__text="text.txt")).validation.text == "It was a dark night."
