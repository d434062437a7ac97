"""The terminal's side of a conversation: lines in, answers out, commands that begin with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

from flows.console import say, without_controls
from tasks.chat import Conversation, OnText, Reply, Served
from tasks.errors import EngineError

HELP = """\
/version        which version answers: reference, digest, device
/system TEXT    say how to answer, from the next answer on; without TEXT: show it; -: take it back
/retry          ask the last question again
/reset          forget the conversation; the system message stays
/exit           leave, as Ctrl-D does
Ctrl-C stops an answer. A backslash at the end of a line: the question goes on in the next one."""
_YOU, _MORE = "> ", ". "


class Chat:
    """Reads lines, hands questions on, shows answers: on stdout, and all else on stderr."""

    def __init__(self, conversation: Conversation) -> None:
        """Take the conversation to be held; look at what stdin and stdout are."""
        self._talk = conversation
        self._answering = conversation.partner.served()
        self.interactive = sys.stdin.isatty()
        self._shown = sys.stdout.isatty()

    def run(self) -> None:
        """Hold the conversation until its end.

        Raises:
            EngineError: A question was not answered, and nobody sits there to be told.
            KeyboardInterrupt: Ctrl-C, and nobody sits there.
        """
        if self.interactive:
            say(f"{_told(self._answering)}; /help for commands, Ctrl-D leaves", dim=True)
        for line in self._lines():
            if line.strip() == "/exit":
                return
            try:
                self._take(line)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                say("stopped", dim=True)

    def _lines(self) -> Iterator[str]:
        """Yield what is typed or piped in, lines that end in a backslash with what follows them."""
        if self.interactive:
            import readline  # noqa: F401 - its import gives input() line editing and a history
        parts: list[str] = []
        while True:
            try:
                line = self._line(_MORE if parts else _YOU)
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                parts = []
                say("")
                continue
            if line is None:
                if self.interactive:
                    say("")
                elif parts:
                    yield "\n".join(parts)
                return
            if line.endswith("\\"):
                parts.append(line[:-1])
                continue
            yield "\n".join([*parts, line])
            parts = []

    def _line(self, prompt: str) -> str | None:
        if not (self.interactive and self._shown):
            sys.stderr.write(prompt if self.interactive else "")
            sys.stderr.flush()
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            return input(prompt)
        except EOFError:
            return None

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            self._command(name, rest.strip())
        elif line.strip():
            self._answer(partial(self._talk.ask, line))

    def _command(self, name: str, rest: str) -> None:
        if name == "/help":
            say(HELP)
        elif name == "/version":
            self._tell_version()
        elif name == "/system":
            if rest:
                self._talk.system = "" if rest == "-" else rest
            say(f"system: {self._talk.system}" if self._talk.system else "there is no system message", dim=True)
        elif name == "/reset":
            self._talk.reset()
            say("a new conversation", dim=True)
        elif name == "/retry":
            self._answer(self._talk.retry)
        else:
            say(f"{name} is no command: /help lists them; a space before the slash makes it a question")

    def _tell_version(self) -> None:
        try:
            self._changed(self._talk.partner.served())
        except EngineError as error:
            self._failed(error)
        else:
            say(_told(self._answering, whole=True))

    def _answer(self, ask: Callable[[OnText], Reply | None]) -> None:
        """Show an answer as it comes, then how it went."""
        ends_line = True

        def show(piece: str) -> None:
            nonlocal ends_line
            sys.stdout.write(without_controls(piece) if self._shown else piece)
            sys.stdout.flush()
            ends_line = piece.endswith("\n")

        def end_line() -> None:
            if not ends_line:
                show("\n")

        try:
            reply = ask(show)
        except KeyboardInterrupt:
            end_line()
            raise
        except EngineError as error:
            end_line()
            self._failed(error)
            return
        if reply is None:
            say("nothing was asked yet")
            return
        if not reply.text.endswith("\n"):
            show("\n")
        self._changed(reply.served)
        say(_how_it_went(reply), dim=True)
        if _fills(reply):
            say(f"the context of {reply.served.context} tokens is full: /reset begins a new conversation")

    def _failed(self, error: EngineError) -> None:
        hint = f"{error}; /retry asks again, /reset begins a new conversation"
        if not self.interactive:
            raise EngineError(hint) from error
        say(without_controls(f"error: {hint}"))

    def _changed(self, served: Served) -> None:
        if (served.reference, served.digest) != (self._answering.reference, self._answering.digest):
            say(f"{_told(served)} answers now, no longer {_told(self._answering)}")
        self._answering = served


def _told(served: Served, *, whole: bool = False) -> str:
    digest = served.digest if whole else served.digest[:12]
    told = " ".join(part for part in (served.reference, digest, served.device and f"on {served.device}") if part)
    return without_controls(told)


def _how_it_went(reply: Reply) -> str:
    parts = [
        "tokens not told" if reply.tokens is None else f"{reply.tokens} tokens",
        "" if reply.ttft_ms is None else f"the first after {reply.ttft_ms:.0f} ms",
        "" if reply.tokens_per_second is None else f"then {reply.tokens_per_second:.0f} tokens/s",
    ]
    cut = "; cut at the limit of --max-new-tokens" if reply.finish_reason == "length" and not _fills(reply) else ""
    return f"{without_controls(reply.served.reference)}: {', '.join(part for part in parts if part)}{cut}"


def _fills(reply: Reply) -> bool:
    """Return whether prompt and answer together are all that the model's context holds."""
    if reply.served.context is None or reply.prompt_tokens is None or reply.tokens is None:
        return False
    return reply.prompt_tokens + reply.tokens >= reply.served.context
