"""Something that is wrong with the registry, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from tasks.records import Record
from tasks.registry.ledger import Entry

Level = Literal["error", "warning"]


class Finding(Record):
    """Something that is wrong."""

    level: Level
    subject: str = Field(description="The version, alias, run, logged model or folder.")
    message: str
    fixable: bool = Field(description="Whether `doctor --fix` mends it.")


class Case(NamedTuple):
    """A finding, and what mends it, which returns the moves of aliases that it made."""

    subject: str
    message: str
    mend: Callable[[], Sequence[Entry] | None] | None = None
    level: Level = "error"

    @property
    def finding(self) -> Finding:
        """What to tell of it."""
        return Finding(level=self.level, subject=self.subject, message=self.message, fixable=self.mend is not None)
