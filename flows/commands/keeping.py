"""What is registered, and keeping it in order."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flows.commands.options import AsJson


def list_(
    name: Annotated[str | None, typer.Argument(help="Only this model's versions.")] = None, as_json: AsJson = False
) -> None:
    """List the registered versions, newest first."""
    from flows.console import say, show_table
    from tasks.registry import list_versions

    versions = list_versions(name)
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
