"""A small process that ends what a command started, should the command be killed.

Our own children notice by themselves (see `tasks.child`). What we start but did not write does not: Prefect's
embedded server would run on for ever, holding the terminal's pipe, and pip would go on filling a folder that the
next run uses.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

MARK = "VINOFLOW_GUARDED"
_GRACE_S = 10
_guards: list[subprocess.Popen[bytes]] = []  # their pipes stay open as long as this process lives, whatever ends it


def start() -> None:
    """Have every process that this one starts from now on ended when this one is gone; it inherits a mark."""
    os.environ[MARK] = uuid.uuid4().hex
    _guards.append(
        subprocess.Popen(
            [sys.executable, "-m", "tasks.guard", os.environ[MARK]],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
    )


def main() -> None:
    """Wait until the parent is gone, then end all that carries its mark."""
    while os.read(0, 1):
        pass
    import psutil

    marked = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == sys.argv[1]:
                process.terminate()
                marked.append(process)
        except psutil.Error:  # gone meanwhile, or not ours to look at
            continue
    for process in psutil.wait_procs(marked, timeout=_GRACE_S)[1]:
        process.kill()


if __name__ == "__main__":
    main()
