from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import Vinoflow

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "openvino",
    "openvino_genai",
    "optimum",
    "mlflow",
    "prefect",
    "huggingface_hub",
    "pandas",
)


def imported_by(*arguments: str, env: dict[str, str] | None = None) -> set[str]:
    """Return the top-level modules that a command imports."""
    code = (
        "import sys, json\n"
        f"sys.argv = ['vinoflow', *{list(arguments)!r}]\n"
        "from flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_what_needs_no_model_imports_nothing_heavy() -> None:
    for command in ("--help", "schema"):
        assert not imported_by(command) & set(HEAVY)
    assert not imported_by("chat", "--url", "http://127.0.0.1:1") & set(HEAVY)


@pytest.mark.slow
def test_commands_without_orchestration_do_not_import_prefect(home: Path) -> None:
    assert "prefect" not in imported_by("list")
    assert not imported_by("check", "configs/smollm2-135m-instruct.yaml") & {
        "prefect",
        "torch",
        "transformers",
        "mlflow",
    }
    assert "prefect" not in imported_by("ask", "Hello", "--model", "nothing@latest")


def test_help_names_every_command(vinoflow: Vinoflow) -> None:
    text = vinoflow("--help").stdout
    for command in ("export-and-validate", "ask", "check", "schema", "list"):
        assert command in text
        assert vinoflow(command, "--help").stdout.startswith("Usage:")


def test_schema_is_a_json_schema_that_the_recipes_keep(vinoflow: Vinoflow) -> None:
    import jsonschema

    schema = json.loads(vinoflow("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    recipe = yaml.safe_load((ROOT / "configs" / "smollm2-135m-instruct.yaml").read_text())
    recipe["validation"]["prompts"] = yaml.safe_load((ROOT / "configs" / "prompts" / "general.yaml").read_text())[
        "prompts"
    ]
    jsonschema.validate(recipe, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(recipe | {"surprise": 1}, schema)


def test_wrong_usage_ends_with_2_and_our_errors_with_1(vinoflow: Vinoflow, tmp_path: Path) -> None:
    assert "Usage:" in vinoflow("ask", "Hello", expect=2).stderr
    assert vinoflow("no-such-command", expect=2).stderr
    done = vinoflow("check", tmp_path / "gone.yaml", expect=1)
    assert done.stderr.startswith("error: recipe")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_ask_names_one_device(vinoflow: Vinoflow) -> None:
    done = vinoflow("ask", "Hello", "--model", "tiny@latest", "--device", "AUTO:GPU,CPU", expect=1)
    assert "AUTO:GPU,CPU may fall back to another device in silence" in done.stderr


@pytest.mark.slow
def test_list_of_nothing(vinoflow: Vinoflow) -> None:
    done = vinoflow("list", "--json")
    assert json.loads(done.stdout) == []
    assert "nothing is registered" in vinoflow("list").stderr


@pytest.mark.slow
def test_ask_of_what_is_not_there_says_what_to_do(vinoflow: Vinoflow) -> None:
    assert "vinoflow list" in vinoflow("ask", "Hello", "--model", "nothing@latest", expect=1).stderr
    assert "NAME@ALIAS" in vinoflow("ask", "Hello", "--model", "nothing", expect=1).stderr


def test_check_predicts_a_local_export(vinoflow: Vinoflow, tiny_recipe: Path) -> None:
    found = json.loads(vinoflow("check", tiny_recipe, "--json").stdout)
    assert found["recipe"] == "tiny"
    assert found["preflight"]["bin_bytes"] > 10_000
    assert "tiny is valid" in vinoflow("check", tiny_recipe).stdout


def test_check_refuses_a_group_size_that_does_not_divide(vinoflow: Vinoflow, tiny_recipe: Path) -> None:
    data = yaml.safe_load(tiny_recipe.read_text())
    data["export"] = {"weight_format": "int4", "group_size": 48}
    tiny_recipe.write_text(yaml.safe_dump(data))
    done = vinoflow("check", tiny_recipe, expect=1)
    assert "export.group_size 48 does not divide" in done.stderr
    assert "group_size_fallback: adjust" in done.stderr


def test_check_of_a_wheel_that_is_not_here_yet_says_so(vinoflow: Vinoflow) -> None:
    done = vinoflow("check", "configs/smollm2-135m-instruct.yaml")
    assert "is valid" in done.stdout
    assert "not here yet" in done.stderr


def test_check_of_a_hub_that_is_not_reached(vinoflow: Vinoflow) -> None:
    done = vinoflow("check", "configs/phi-3-mini-4k-instruct.yaml", expect=1, HF_HUB_OFFLINE="1")
    assert done.stderr.splitlines()[-1].startswith("error:")
    assert "HF_HUB_OFFLINE" in done.stderr
