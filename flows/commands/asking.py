"""Answers of a version."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import AsJson

if TYPE_CHECKING:
    from tasks.serve import Answered


def ask(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    model: Annotated[str, typer.Option("--model", metavar="REF", help="NAME/VERSION, NAME@ALIAS or NAME@latest.")],
    system: Annotated[str, typer.Option(help="A system message to go before it.")] = "",
    raw: Annotated[bool, typer.Option(help="Send the prompt as it is, without the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer at most.")] = 512,
    device: Annotated[str | None, typer.Option(help="Where to run; default: where the version was validated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a registered model; the answer is streamed.

    The version's files are fetched and each is checked against its SHA-256 before anything is loaded.
    """
    from flows.console import live_progress, say, without_controls
    from tasks.config import Message
    from tasks.engine import Request
    from tasks.serve import answer

    text = sys.stdin.read() if prompt == "-" else prompt
    messages = ([Message(role="system", content=system)] if system else []) + [Message(role="user", content=text)]
    request = Request(
        messages=() if raw else tuple(messages), prompt=text if raw else "", max_new_tokens=max_new_tokens
    )

    seen = sys.stdout.isatty()

    def show(_: int, piece: str) -> None:
        if not as_json:
            sys.stdout.write(without_controls(piece) if seen else piece)
            sys.stdout.flush()

    with live_progress():
        answered = answer(model, [request], device=device, on_text=show)
    if as_json:
        given = answered.completions[0].answer.model_dump(mode="json")
        names = {"model": answered.version.reference, "digest": answered.version.digest, "device": answered.device}
        typer.echo(json.dumps(names | given))
    else:
        typer.echo()
        say(_how_it_went(answered, max_new_tokens=max_new_tokens))


def _how_it_went(answered: Answered, *, max_new_tokens: int) -> str:
    given = answered.completions[0].answer
    speed = f", then {1000 / given.tpot_ms:.0f} tokens/s" if given.tpot_ms else ""
    cut = f"; cut at --max-new-tokens {max_new_tokens}" if given.finish_reason == "length" else ""
    return (
        f"{answered.version.reference} {answered.version.digest[:12]} on {answered.device}: "
        f"{len(given.token_ids)} tokens, the first after {given.ttft_ms:.0f} ms{speed}{cut}"
    )
