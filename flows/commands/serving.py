"""The server, and the keys to it."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands.options import AsJson

if TYPE_CHECKING:
    from tasks.serving.server import Listening


def serve(
    model: Annotated[str, typer.Argument(metavar="REF", help="NAME@ALIAS or NAME@latest (followed), or NAME/VERSION.")],
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings: `vinoflow schema serve`.")] = None,
    host: Annotated[str | None, typer.Option(help="Default 127.0.0.1; beyond this machine only with keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Default 8000; 0: any free one.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run; default: where it was validated.")] = None,
    swap: Annotated[
        Literal["beside", "stop-first"] | None, typer.Option(help="stop-first: memory does not hold two versions.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a version by OpenAI's API, and follow the alias: when it moves, the server does, and no request notices.

    A chat page is at /, metrics at /metrics, health at /health/ready. Every answer names its version and digest.
    """
    from flows.console import live_progress, say
    from tasks.recipe_file import load_serving
    from tasks.serving.server import serve as run

    settings = load_serving(config, host=host, port=port, device=device, swap=swap)
    _log_to_stderr()

    def ready(listening: Listening) -> None:
        if as_json:
            typer.echo(listening.model_dump_json())
            return
        typer.echo(f"{listening.version} {listening.digest[:12]} on {listening.device}: {listening.url}")
        follows = f"follows {model}; " if "@" in model else ""
        say(f"{follows}a page to chat is at {listening.url}/, Ctrl-C ends the server")

    with live_progress():
        run(model, settings, on_ready=ready)


def api_key(
    owner: Annotated[str, typer.Argument(help="Whose key it is: the request log names it.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Make a key to the server. Only its SHA-256 is for the settings; the key itself is shown once."""
    if not owner.isidentifier():
        raise typer.BadParameter(f"{owner!r} must be letters, digits and _", param_hint="OWNER")
    key = f"vf-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    if as_json:
        typer.echo(json.dumps({"owner": owner, "key": key, "sha256": digest}))
        return
    typer.echo(f"key       {key}")
    typer.echo(f"settings  api_keys: {{ {owner}: {digest} }}")
    typer.echo(f"or        VINOFLOW_API_KEYS={owner}:{digest}")


def _log_to_stderr() -> None:
    """Write what happens, and one line of JSON a request."""
    plain, line = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    plain.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, handler in (("tasks", plain), ("uvicorn", plain), ("vinoflow.requests", line)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if name == "uvicorn" else logging.INFO)
        logger.propagate = False
