"""What a person sees while a command works: live progress on stderr, results on stdout."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tasks.progress import Step, listening
from tasks.summary import human_bytes


@contextmanager
def live_progress() -> Iterator[None]:
    """Draw the steps of the code inside: bars on a terminal, a line a finished step elsewhere."""
    console = Console(stderr=True, highlight=False)
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    try:
        with listening(_Drawn(console, bars)):
            yield
    finally:
        bars.stop()


class _Drawn:
    """Draws steps with rich; a step that is over becomes a line that stays.

    The terminal is ours only while a step is under way: an answer that streams between steps is left alone.
    """

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console = console
        self._bars = bars
        self._tasks: dict[int, TaskID] = {}

    def began(self, step: Step) -> None:
        self._tasks[id(step)] = self._bars.add_task(step.name, total=step.total, text=escape(_text(step)))
        self._bars.start()

    def moved(self, step: Step) -> None:
        self._bars.update(
            self._tasks[id(step)], completed=step.done, total=step.total or None, text=escape(_text(step))
        )

    def ended(self, step: Step, *, failed: bool) -> None:
        self._bars.remove_task(self._tasks.pop(id(step)))
        if not self._tasks:
            self._bars.stop()
        mark = "[red]✗[/red]" if failed else "[green]✓[/green]"
        self._console.print(f"{mark} {step.name:<12} {step.seconds:7.1f} s  {escape(_text(step))}", soft_wrap=True)


def _text(step: Step) -> str:
    amount = ""
    if step.unit == "bytes" and step.total:
        amount = f"{human_bytes(step.done)} of {human_bytes(step.total)}"
    elif step.unit == "steps" and step.total:
        amount = f"{step.done:.0f} of {step.total:.0f}"
    elif step.total:
        amount = f"{100 * step.done / step.total:.0f} %"
    return "  ".join(part for part in (amount, step.note) if part)


def say(text: str, *, dim: bool = False) -> None:
    """Say something beside the result, on stderr."""
    Console(stderr=True, highlight=False).print(escape(text), soft_wrap=True, style="dim" if dim else None)


def without_controls(text: str) -> str:
    """Return a text without what would command the terminal: a model's words are words only."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def show_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows in aligned columns on stdout, nothing cut: a pipe gets what a terminal shows."""
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
