"""What is registered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.ledger import MOVES, move_as_json, move_row
from flows.commands.options import AsJson

if TYPE_CHECKING:
    from rich.text import Text

    from flows.diff import Answers
    from tasks.records import Verdict

_REFERENCE = "NAME/VERSION, NAME@ALIAS or NAME@latest."
_NEWEST = 20  # versions of each model that are listed


def list_(
    name: Annotated[str | None, typer.Argument(help="Only this model's versions.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All versions, not the newest 20 of each model.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the registered versions, newest first."""
    from flows.console import say, show_table
    from tasks.registry import list_versions

    found = list_versions(name, limit=None if everything else _NEWEST + 1)
    by_name = {model: list(versions) for model, versions in groupby(found, key=lambda version: version.name)}
    more = [model for model, versions in by_name.items() if len(versions) > _NEWEST and not everything]
    versions = [one for of_model in by_name.values() for one in (of_model if everything else of_model[:_NEWEST])]
    if as_json:
        fields = {"name", "version", "aliases", "digest"}
        typer.echo(json.dumps([version.model_dump(mode="json", include=fields) for version in versions]))
    elif versions:
        header = ("version", "aliases", "digest", "device", "bit mix")
        rows = [
            (
                version.reference,
                ", ".join(version.aliases) or "-",
                version.digest[:12] or "-",
                version.tags.get("vinoflow.device", "-"),
                version.tags.get("vinoflow.bit_mix", "-"),
            )
            for version in versions
        ]
        show_table([header, *rows])
    else:
        say("nothing is registered yet: vinoflow export-and-validate configs/smollm2-135m-instruct.yaml")
    for model in more:
        say(f"{model} has more than these {_NEWEST} versions: vinoflow list {model} --all")


def show(
    reference: Annotated[str, typer.Argument(metavar="REF", help=_REFERENCE)],
    as_json: AsJson = False,
) -> None:
    """Show a version: what it was made by, how it did, its gates, the moves that name it, where its report is."""
    from flows.console import show_table
    from tasks.errors import RegistryError
    from tasks.registry import entries, evidence_uri, libraries_of, metrics_of, report_of, resolve
    from tasks.summary import summarise

    version = resolve(reference)
    if not version.digest:
        raise RegistryError(f"{version.reference} has no vinoflow.digest tag: it was not registered by vinoflow")
    found, metrics, libraries = report_of(version), metrics_of(version), libraries_of(version)
    moves = [one for one in entries(version.name) if version.version in (one.entry.from_version, one.entry.to_version)]
    report = f"{evidence_uri(version.run_id)}/report.html".removeprefix(f"{Path.cwd()}/")
    if as_json:
        told = {
            **version.model_dump(mode="json"),
            "metrics": metrics,
            "libraries": libraries,
            "verdicts": [verdict.model_dump(mode="json") for verdict in found.verdicts],
            "ledger": [move_as_json(one) for one in moves],
            "report": report,
        }
        typer.echo(json.dumps(told))
        return
    tags = version.tags
    show_table(
        [
            *summarise(version, metrics),
            ("aliases", ", ".join(version.aliases) or "-"),
            ("source", f"{tags['vinoflow.source']} {tags['vinoflow.source_revision']}"),
            ("recipe", tags["vinoflow.recipe_digest"][:12]),
            ("libraries", ", ".join(f"{name} {number}" for name, number in libraries.items()) or "-"),
            ("report", report),
        ]
    )
    typer.echo()
    show_table([("gate", "value", "95 % interval", "limit", ""), *map(_verdict_row, found.verdicts)])
    if moves:
        typer.echo()
        show_table([MOVES, *map(move_row, moves)])


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    return (
        verdict.metric,
        "not measured" if verdict.value is None else f"{verdict.value:.4g}",
        "-" if verdict.low is None else f"{verdict.low:.4g} to {verdict.high:.4g}",
        verdict.limit,
        "ok" if verdict.passed else "FAILS",
    )


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=_REFERENCE)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    as_json: AsJson = False,
) -> None:
    """Compare two versions: what differs in recipe, libraries and metrics, and their answers side by side."""
    from flows.console import say, show_table
    from flows.diff import diff as compare
    from flows.diff import rows

    found = compare(a, b)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    told = rows(found)
    if len(told) > 1:
        show_table(told)
    if found.answers:
        _side_by_side(found.answers, (found.a.reference, found.b.reference))
    elif len(told) == 1:
        say(f"{found.a.reference} and {found.b.reference} differ in nothing that was recorded")


def _side_by_side(answers: Sequence[Answers], names: tuple[str, str]) -> None:
    """Print two columns of answers; what both begin with is dim."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for answer in answers:
        table = Table(*names, title=Text(f"\n{answer.id}"), title_justify="left", expand=True)
        for column in table.columns:
            column.ratio, column.overflow = 1, "fold"
        pairs = zip(answer.a or "", answer.b or "", strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        table.add_row(_parted(answer.a, same), _parted(answer.b, same))
        console.print(table)


def _parted(text: str | None, same: int) -> Text:
    from rich.text import Text

    return Text("(not asked)", "dim") if text is None else Text.assemble((text[:same], "dim"), text[same:])
