"""Exports of one machine come one after another."""

from __future__ import annotations

import threading
from pathlib import Path

from filelock import FileLock

from flows.locking import export_slot
from tasks.progress import Step, listening


class Heard:
    """Keeps what a step says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.moved_on = threading.Event()

    def began(self, step: Step) -> None:
        self.notes.append(step.name)

    def moved(self, step: Step) -> None:
        self.notes.append(step.note)
        self.moved_on.set()

    def ended(self, step: Step, *, failed: bool) -> None:
        self.notes.append("failed" if failed else "over")


def test_an_export_waits_for_another_one_of_this_machine(home: Path, tmp_path: Path) -> None:
    heard, order = Heard(), []
    with export_slot():
        order.append("first")
    held = threading.Event()

    def another() -> None:
        with FileLock(tmp_path / "cache" / "export.lock"):
            held.set()
            heard.moved_on.wait(60)
            order.append("other ends")

    thread = threading.Thread(target=another)
    thread.start()
    held.wait(60)
    with listening(heard), export_slot():
        order.append("second")
    thread.join()
    assert order == ["first", "other ends", "second"]
    assert heard.notes == ["wait", "another export is under way on this machine", "over"]
