"""One after another on this machine: who comes second waits, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks import progress


@contextmanager
def in_turn(path: Path, *, note: str) -> Iterator[None]:
    """Hold a lock file, which a holder that dies lets go; its folder is made.

    Args:
        path: The file.
        note: What to tell while another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with progress.step("wait") as step:
            step.update(note=note)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
