"""A conversation: what was said so far, and the partner who goes on with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pydantic import Field

from tasks.config import Message
from tasks.records import Record

OnText = Callable[[str], None]


class Settings(Record):
    """How answers are made."""

    max_new_tokens: int | None = Field(None, description="Of an answer; None: 512 here, a server's own limit there.")
    temperature: float = Field(0.0, description="0: greedy.")
    seed: int = Field(0, description="Of the first answer; each further one takes the next.")


class Served(Record):
    """Which version answers. What a server does not tell is empty."""

    reference: str
    digest: str = ""
    device: str = ""
    context: int | None = Field(None, description="Tokens of prompt and answer that it holds.")


class Reply(Record):
    """One answer, and who gave it."""

    text: str
    served: Served
    prompt_tokens: int | None
    tokens: int | None = Field(description="Of the answer; None where a server does not tell.")
    finish_reason: str
    ttft_ms: float | None = Field(description="From the question to the first text, in milliseconds; None: no text.")
    tokens_per_second: float | None = Field(description="After the first; None for fewer than two.")


class Partner(Protocol):
    """Who answers."""

    def served(self) -> Served:
        """Return which version would answer now."""

    def answer(self, messages: Sequence[Message], settings: Settings, on_text: OnText) -> Reply:
        """Answer the last of the messages; Ctrl-C ends the answer and leaves the partner whole."""


class Conversation:
    """A chat: what was said so far, and the partner who goes on with it."""

    def __init__(self, partner: Partner, *, settings: Settings, system: str = "") -> None:
        """Begin without a word said."""
        self.partner = partner
        self.settings = settings
        self.system = system
        self.turns: list[Message] = []
        self._unanswered = ""
        self._asked = 0

    def ask(self, text: str, on_text: OnText) -> Reply:
        """Have a question answered; both become part of the conversation.

        An answer that is stopped by Ctrl-C stays as far as it was given. A question without any answer does not.

        Raises:
            EngineError: The partner does not answer, or cannot: the conversation fills the model's context, say.
            KeyboardInterrupt: The answer was stopped.
        """
        question = Message(role="user", content=text)
        said: list[str] = []

        def hear(piece: str) -> None:
            said.append(piece)
            on_text(piece)

        self._unanswered = text
        settings = self.settings.model_copy(update={"seed": self.settings.seed + self._asked})
        self._asked += 1
        system = [Message(role="system", content=self.system)] if self.system else []
        try:
            reply = self.partner.answer([*system, *self.turns, question], settings, hear)
        except KeyboardInterrupt:
            if said:
                self._keep(question, "".join(said))
            raise
        self._keep(question, reply.text)
        return reply

    def retry(self, on_text: OnText) -> Reply | None:
        """Ask the last question again, whose answer is forgotten; None: nothing was asked."""
        if self._unanswered:
            return self.ask(self._unanswered, on_text)
        if not self.turns:
            return None
        kept, self.turns = self.turns, self.turns[:-2]
        try:
            return self.ask(kept[-2].content, on_text)
        except BaseException:
            if len(self.turns) < len(kept):  # not even a part of a new answer
                self.turns, self._unanswered = kept, ""
            raise

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.turns, self._unanswered = [], ""

    def _keep(self, question: Message, answer: str) -> None:
        self.turns += (question, Message(role="assistant", content=answer))
        self._unanswered = ""
