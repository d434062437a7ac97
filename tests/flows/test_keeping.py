from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.diff import diff, rows
from flows.promotion import consider, promote
from tasks.records import ModelVersion
from tasks.registry import connect, list_versions, pull
from tasks.registry.files import model_id_of
from tests import small
from tests.conftest import Vinoflow

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_store")]


@pytest.fixture
def two(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ModelVersion]:
    """Two versions, by recipes that differ, which answer differently."""
    first = small.version(tmp_path, "a")
    answered = small.report

    def otherwise(*given: object, **how: object) -> object:
        report = answered(*given, **how)  # type: ignore[arg-type]
        (prompt,) = report.prompts
        said = prompt.model_copy(update={"answer": prompt.answer.model_copy(update={"text": "Hi, [you] there"})})
        return report.model_copy(update={"prompts": (said,), "versions": {"openvino": "2"}})

    monkeypatch.setattr(small, "report", otherwise)
    made_by = small.recipe()
    other = made_by.model_copy(update={"export": made_by.export.model_copy(update={"ratio": 0.5})})
    return [first, small.version(tmp_path, "b", kl=0.1, made_by=other)]


def test_list_shows_the_newest(home: Path, tmp_path: Path, quick: Vinoflow) -> None:
    version = small.version(tmp_path, "a")
    source = f"models:/{model_id_of(version)}"
    for _ in range(20):
        connect().create_model_version("small", source, run_id=version.run_id, tags=version.tags)
    small.version(tmp_path, "x", made_by=small.recipe("other"))
    done = quick("list")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 1 + 20
    assert lines[1].startswith("other/1")
    assert [line.split()[0] for line in lines[2:]] == [f"small/{number}" for number in range(21, 1, -1)]
    assert "vinoflow list small --all" in done.stderr
    assert "other" not in done.stderr
    assert len(json.loads(quick("list", "--json").stdout)) == 21
    everything = quick("list", "small", "--all")
    assert everything.stdout.splitlines()[-1].startswith("small/1 ")
    assert everything.stderr == ""


def test_show(two: list[ModelVersion], quick: Vinoflow) -> None:
    promote(consider("small/1", alias="champion"), actor="jane")
    told = json.loads(quick("show", "small@champion", "--json").stdout)
    assert (told["name"], told["version"], told["aliases"]) == ("small", 1, ["champion"])
    assert told["libraries"]["openvino"] == "1"
    assert told["metrics"]["answers_kl_mean"] == 0.2
    assert [verdict["passed"] for verdict in told["verdicts"]] == [True, True]
    assert [(entry["actor"], entry["to_version"]) for entry in told["ledger"]] == [("jane", 1)]
    assert Path(told["report"]).read_text() == "<p>A report</p>"
    shown = quick("show", "small/1").stdout
    for words in ("local:checkpoint", two[0].digest[:12], "openvino 1", "at most 1", "report.html", "jane"):
        assert words in shown
    assert "jane" not in quick("show", "small@latest").stdout
    assert "no version 9" in quick("show", "small/9", expect=1).stderr


def test_show_of_what_is_not_ours(home: Path, tmp_path: Path, quick: Vinoflow) -> None:
    source = f"models:/{model_id_of(small.version(tmp_path, 'a'))}"
    connect().create_registered_model("theirs")
    connect().create_model_version("theirs", source)
    assert "not registered by vinoflow" in quick("show", "theirs/1", expect=1).stderr


def test_what_differs(two: list[ModelVersion]) -> None:
    found = diff("small/1", "small@latest")
    assert found.recipe == {"export.ratio": (None, "0.5")}
    assert found.libraries == {"openvino": ("1", "2")}
    assert list(found.metrics) == ["answers_kl_mean"]
    assert [(one.id, one.prompt, one.a, one.b) for one in found.answers] == [
        ("hello", "Hello", "Hi", "Hi, [you] there")
    ]
    assert rows(found) == [
        ("", "small/1", "small/2"),
        ("export.ratio", "-", "0.5"),
        ("openvino", "1", "2"),
        ("answers_kl_mean", "0.2 (0.198 to 0.202)", "0.1 (0.099 to 0.101)"),
    ]
    same = diff("small/1", "small/1")
    assert (same.recipe, same.metrics, same.libraries, same.answers) == ({}, {}, {}, ())


def test_diff_on_the_command_line(two: list[ModelVersion], quick: Vinoflow) -> None:
    shown = quick("diff", "small/1", "small/2").stdout
    assert "export.ratio" in shown
    (line,) = [line for line in shown.splitlines() if "there" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == ["Hi", "Hi, [you] there"]
    told = json.loads(quick("diff", "small/1", "small/2", "--json").stdout)
    assert told["metrics"]["answers_kl_mean"][1]["high"] == pytest.approx(0.101)
    assert told["answers"][0]["b"] == "Hi, [you] there"
    assert "differ in nothing" in quick("diff", "small/1", "small/1").stderr


def test_gc_tells_first(two: list[ModelVersion], quick: Vinoflow) -> None:
    pull("small/1")
    assert "nothing to delete" in quick("gc").stderr
    done = quick("gc", "--older-than", "0")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["what", "version", "cache"]
    assert "--delete" in done.stderr
    assert len(list_versions()) == 2
    told = json.loads(quick("gc", "--older-than", "0", "--delete", "--json").stdout)
    assert told["deleted"] is True
    assert [one["kind"] for one in told["found"]] == ["version", "cache"]
    assert [version.version for version in list_versions()] == [2]
    assert "nothing to delete" in quick("gc", "--older-than", "0").stderr


def test_doctor(two: list[ModelVersion], quick: Vinoflow) -> None:
    assert "nothing is wrong" in quick("doctor").stderr
    promote(consider("small/1", alias="champion"))
    connect().set_registered_model_alias("small", "champion", "2")
    done = quick("doctor", expect=1)
    assert "small@champion" in done.stdout
    assert "--fix" in done.stderr
    told = json.loads(quick("doctor", "--fix", "--by", "jane", "--json").stdout)
    assert [finding["subject"] for finding in told["mended"]] == ["small@champion"]
    assert {finding["level"] for finding in told["wrong"]} == {"warning"}, "openvino 1 is not here"
    assert [entry["actor"] for entry in told["moved"]] == ["jane"]
    assert quick("doctor").stdout.count("warning") == 1
