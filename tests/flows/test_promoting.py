"""What promote refuses and what it lets through, on versions of a few bytes and the command itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.promotion import consider, promote
from tasks.errors import IntegrityError, PromotionError, RegistryError
from tasks.records import ModelVersion
from tasks.registry import aliases_of, connect, entries, evidence_uri, resolve
from tasks.registry.files import local_store, location_of, model_id_of
from tests import small
from tests.conftest import Vinoflow

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("with_store")]


def stored(version: ModelVersion) -> Path:
    folder = local_store(location_of(version))
    assert folder is not None
    return folder


def try_to_promote(version: ModelVersion, **how: object) -> None:
    promote(consider(version.reference, alias="champion"), **how)  # type: ignore[arg-type]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.unlink()
    path.write_bytes(content)


def edit(version: ModelVersion, field: str, value: object) -> None:
    path = Path(evidence_uri(version.run_id)) / "report.json"
    report = json.loads(path.read_text())
    report[field] = value
    path.write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda version: flip(stored(version) / "openvino_model.bin"), "openvino_model.bin is damaged"),
        (lambda version: (stored(version) / "openvino_model.xml").unlink(), "openvino_model.xml is missing"),
        (lambda version: edit(version, "model_digest", "0" * 64), "about another model"),
        (lambda version: edit(version, "metrics", {"answers_kl_mean": 0.0}), "not the one that it was registered with"),
        (
            lambda version: connect().set_model_version_tag("small", "1", "vinoflow.device", "GPU.0"),
            "about another device: CPU, not GPU.0",
        ),
        (
            lambda version: connect().finalize_logged_model(model_id_of(version), "FAILED"),
            "FAILED, not READY",
        ),
    ],
    ids=["flipped-bit", "missing-file", "other-model", "edited-report", "other-device", "not-ready"],
)
def test_what_is_broken_is_refused_even_by_force(
    damage: Callable[[ModelVersion], object], words: str, home: Path, tmp_path: Path
) -> None:
    version = small.version(tmp_path, "a")
    damage(version)
    for how in ({}, {"force": True, "reason": "I must"}):
        with pytest.raises(PromotionError, match=words):
            try_to_promote(resolve("small/1"), **how)
    assert aliases_of("small")[0] == {}


def test_a_version_without_report_or_with_another_recipe_is_refused(home: Path, tmp_path: Path) -> None:
    version = small.version(tmp_path, "a")
    evidence = Path(evidence_uri(version.run_id))
    recipe = (evidence / "recipe.yaml").read_text()
    (evidence / "recipe.yaml").write_text(recipe.replace("max: 1.0", "max: 100.0"))
    with pytest.raises(RegistryError, match=r"recipe\.yaml that is kept with small/1 is not the one"):
        try_to_promote(version)
    (evidence / "recipe.yaml").write_text(recipe)
    (evidence / "report.json").write_text("{}")
    with pytest.raises(PromotionError, match="the report of small/1 cannot be read"):
        try_to_promote(version, force=True, reason="I must")


def test_files_that_break_after_the_look_are_noticed(home: Path, tmp_path: Path) -> None:
    version = small.version(tmp_path, "a")
    decision = consider(version.reference, alias="champion")
    (stored(version) / "openvino_model.xml").unlink()
    with pytest.raises(IntegrityError, match=r"small/1 cannot serve: .*openvino_model\.xml is missing"):
        promote(decision)
    assert list(entries("small")) == []


def test_a_report_that_did_not_pass_needs_force_and_a_reason_and_is_told(home: Path, tmp_path: Path) -> None:
    version = small.version(tmp_path, "a", passed=False)
    with pytest.raises(PromotionError, match=r"answers_kl_mean is 0\.2, must be at most 1"):
        try_to_promote(version)
    with pytest.raises(PromotionError, match="--force needs a --reason"):
        try_to_promote(version, force=True, reason=" ")
    try_to_promote(version, force=True, reason="the demo is now")
    entry = next(entries("small")).entry
    assert entry.gates == ("answers_kl_mean is 0.2, must be at most 1",)
    assert entry.reason == "the demo is now"


def test_worse_than_the_present_champion(home: Path, tmp_path: Path) -> None:
    best, near, worse = (small.version(tmp_path, name, kl=kl) for name, kl in (("a", 0.2), ("b", 0.29), ("c", 0.31)))
    try_to_promote(best)
    with pytest.raises(PromotionError, match=r"at most 0\.3 \(1\.5 of small/1's 0\.2\)"):
        try_to_promote(worse)
    try_to_promote(near)
    try_to_promote(worse)  # the champion is another now
    assert aliases_of("small")[0] == {"champion": 3}


def test_a_champion_of_which_nothing_is_known_is_replaced_by_force_only(home: Path, tmp_path: Path) -> None:
    first, second = (small.version(tmp_path, name) for name in "ab")
    try_to_promote(first)
    (Path(evidence_uri(first.run_id)) / "report.json").unlink()
    with pytest.raises(PromotionError, match="cannot be compared with the present champion"):
        try_to_promote(second)
    try_to_promote(second, force=True, reason="the old one lost its report")
    assert aliases_of("small")[0] == {"champion": 2}


def test_a_person_must_agree_where_the_alias_asks_for_it(home: Path, tmp_path: Path) -> None:
    asks = small.recipe(aliases={"champion": {"approval": "manual"}})
    version = small.version(tmp_path, "a", made_by=asks)
    with pytest.raises(PromotionError, match="asks for approval"):
        try_to_promote(version, force=True, reason="I must")
    try_to_promote(version, approved_by="ann")
    assert next(entries("small")).entry.approved_by == "ann"


def test_an_alias_may_ask_for_a_device(home: Path, tmp_path: Path) -> None:
    asks = small.recipe(device="GPU.0", aliases={"champion": {"device": "GPU.0"}})
    on_cpu = small.version(tmp_path, "a", made_by=asks)
    with pytest.raises(PromotionError, match=r"champion asks for a validation on GPU\.0, this one ran on CPU"):
        try_to_promote(on_cpu, force=True, reason="I must")
    promote(consider(on_cpu.reference, alias="staging"))
    try_to_promote(small.version(tmp_path, "b", device="GPU.0", made_by=asks))
    assert aliases_of("small")[0] == {"champion": 2, "staging": 1}


def test_the_commands(quick: Vinoflow, home: Path, tmp_path: Path) -> None:
    for name, kl in (("a", 0.2), ("b", 0.5)):
        small.version(tmp_path, name, kl=kl)
    dry = quick("promote", "small/1", "--dry-run")
    assert "answers_kl_mean" in dry.stdout and "small/1 may be champion" in dry.stderr
    assert aliases_of("small")[0] == {}
    done = json.loads(quick("promote", "small/1", "--by", "jane", "--json").stdout)
    assert [move["actor"] for move in done["moved"]] == ["jane"]
    refused = quick("promote", "small/2", expect=3)
    assert refused.stderr.startswith("error: small/2 is not promoted to champion, gates fail:")
    assert "FAILS" in quick("promote", "small/2", "--dry-run", expect=3).stdout
    forced = quick("promote", "small/2", "--force", "--reason", "a try")
    assert "small@champion is now small/2 (from 1), ledger entry 2" in forced.stdout
    assert "a try; forced past 1 gate" in quick("ledger", "small").stdout
    assert "small/1 (from 2), ledger entry 3" in quick("rollback", "small").stdout
    assert "there is no version before" in quick("rollback", "small", expect=3).stderr
    assert "entries 3, the chain is whole" in quick("ledger", "verify", "small").stderr
    second = json.loads(quick("ledger", "small", "--json").stdout)[1]
    then = json.loads(quick("ledger", "small", "--at", second["at"], "--json").stdout)
    assert then["champion"]["to_version"] == 2
    connect().delete_run(list(entries("small"))[1].run_id)
    assert "entry 2 is missing" in quick("ledger", "verify", expect=1).stderr
    for arguments, words in (
        (("promote", "small/9"), "has no version 9"),
        (("promote", "small/1", "--alias", "latest"), "--alias 'latest' cannot be an alias"),
        (("ledger", "small", "--at", "noon"), "--at 'noon' is not a time"),
        (("rollback", "other"), "no model 'other'"),
    ):
        error = quick(*arguments, expect=1).stderr
        assert words in error and error.startswith("error: ")
