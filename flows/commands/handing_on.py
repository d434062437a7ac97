"""Handing versions on to other servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import AsJson


def export_ovms(
    reference: Annotated[str, typer.Argument(metavar="REF", help="NAME/VERSION, NAME@ALIAS or NAME@latest.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The repository; other models in it stay.")],
    device: Annotated[str | None, typer.Option(help="Where it runs; default: where the version was validated.")] = None,
    cache_size: Annotated[
        int, typer.Option(metavar="GB", min=0, help="Room for the KV cache; 0: it grows as requests need it.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Lay a version out for OpenVINO Model Server: FOLDER/config.json, FOLDER/NAME/VERSION/.

    Each file is checked against its SHA-256, and linked where the file system can. A server that runs on
    FOLDER/config.json takes the version over by itself.
    """
    from flows.console import live_progress, say
    from tasks.ovms import export_ovms as lay_out

    with live_progress():
        done = lay_out(reference, folder, device=device, cache_size_gb=cache_size)
    if as_json:
        names = {"model": done.version.reference, "digest": done.version.digest, "device": done.device}
        typer.echo(json.dumps(names | {"path": str(done.path), "config": str(done.config)}))
        return
    typer.echo(done.path)
    say(f"{done.version.reference} {done.version.digest[:12]} on {done.device}: ovms --config_path {done.config}")
