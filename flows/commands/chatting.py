"""A conversation in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer


def chat(
    model: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="Pull and load NAME/VERSION, NAME@ALIAS or NAME@latest.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Talk with a running server; its key is VINOFLOW_API_KEY.")] = None,
    system: Annotated[str, typer.Option(help="A system message: how to answer.")] = "",
    device: Annotated[str | None, typer.Option(help="Where REF runs; default: where it was validated.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer at most; default: 512, or the server's limit.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: the likeliest word always.")] = 0,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the first answer's chance; each further one takes the next.")
    ] = 0,
) -> None:
    """Chat with a model: REF, or the one that a server at --url serves.

    /help lists the commands. Piped in, each line is a question: answers go to stdout, all else to stderr.
    """
    import os
    import sys
    from contextlib import ExitStack

    from flows.chat import Chat
    from flows.console import live_progress
    from tasks.chat import Conversation, Partner, Settings, loaded, server

    if (model is None) == (url is None):
        raise typer.BadParameter("give either REF, a registered version, or --url, a server")
    if url and device:
        raise typer.BadParameter("--device is for REF: a server has chosen its own")
    settings = Settings(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with ExitStack() as stack:
        partner: Partner
        if url:
            partner = stack.enter_context(server(url, api_key=os.environ.get("VINOFLOW_API_KEY", "")))
        else:
            with live_progress():
                partner = stack.enter_context(loaded(str(model), device=device))
        Chat(Conversation(partner, settings=settings, system=system)).run()
