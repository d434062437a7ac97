"""One of several processes that move the champion at once: `python -m tests.racing NAME TIMES`.

It promotes so many times, each time on what it saw, and prints one JSON line: the moves it made, how often another was
faster.
"""

from __future__ import annotations

import json
import os
import random
import sys

from flows.promotion import consider, promote
from tasks.errors import ConflictError
from tasks.registry import list_versions


def race(name: str, times: int) -> None:
    versions = [version.reference for version in list_versions(name)]
    chosen = random.Random(os.getpid())
    moves: list[str] = []
    conflicts = 0
    for _ in range(times):
        try:
            made = promote(consider(chosen.choice(versions), alias="champion"), actor=f"racer {os.getpid()}")
            moves += [entry.digest for entry in made]
        except ConflictError:
            conflicts += 1
    print(json.dumps({"moves": moves, "conflicts": conflicts}))


if __name__ == "__main__":
    race(sys.argv[1], int(sys.argv[2]))
