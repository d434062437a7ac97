"""What a new version changes against the one that serves, for a person to read."""

from __future__ import annotations

import logging
from textwrap import shorten

from flows.diff import Difference, diff, rows
from tasks.errors import RegistryError, VersionNotFoundError
from tasks.records import ModelVersion
from tasks.registry import resolve

_ANSWERS = 12  # that are shown side by side
_WIDTH = 300  # characters of each
_log = logging.getLogger(__name__)


def changes(version: ModelVersion, *, alias: str) -> str:
    """Return in Markdown what differs between a version and the one that has an alias; empty: no other has it."""
    try:
        current = resolve(f"{version.name}@{alias}")
        if current.version == version.version:
            return ""
        return _page(diff(current.reference, version.reference), alias)
    except VersionNotFoundError:
        return ""
    except RegistryError as error:  # the version is made and stays, whatever is wrong with the other one's evidence
        _log.warning("%s cannot be compared with %s: %s", version.reference, alias, error)
        return f"{version.reference} cannot be compared with {alias}: {error}\n"


def _page(found: Difference, alias: str) -> str:
    header, *differing = rows(found)
    lines = [f"# {found.b.reference} against {alias} {found.a.reference}", "", _checkpoints(found), ""]
    lines += _table(("", *header[1:]), differing)
    lines += ["", f"## Answers that differ: {len(found.answers)}", ""]
    shown = [(one.prompt, one.a or "-", one.b or "-") for one in found.answers[:_ANSWERS]]
    if shown:
        lines += _table(("prompt", *header[1:]), shown)
    if len(found.answers) > _ANSWERS:
        lines += ["", f"`vinoflow diff {found.a.reference} {found.b.reference}` shows all."]
    return "\n".join([*lines, ""])


def _checkpoints(found: Difference) -> str:
    one, other = ((tags["vinoflow.source"], tags["vinoflow.source_revision"]) for tags in (found.a.tags, found.b.tags))
    if one == other:
        return f"The same checkpoint, {one[0]} {one[1]}."
    return f"Checkpoint {one[0]} {one[1]}, now {other[0]} {other[1]}."


def _table(header: tuple[str, ...], lines: list[tuple[str, str, str]]) -> list[str]:
    cells = [header, tuple("---" for _ in header), *(tuple(map(_cell, line)) for line in lines)]
    return [f"| {' | '.join(line)} |" for line in cells]


def _cell(text: str) -> str:
    """Return a text as it is to be read: none of it is Markdown, an answer least of all."""
    plain = shorten(" ".join(text.split()), _WIDTH, placeholder=" ...")
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()<>#|!&" else sign for sign in plain)
