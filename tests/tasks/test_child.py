from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks import child
from tasks.errors import WorkerError

ROOT = Path(__file__).parents[2]
MODULE = """
import os, signal, sys, time
from tasks.child import serve_once

def work(request, parent):
    print("a line for the log", flush=True)
    match request["do"]:
        case "add":
            parent.send(event="phase", done=1)
            return {"sum": request["a"] + request["b"]}
        case "raise":
            raise ValueError("the number 7 is wrong")
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "memory":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(5)
        case "hang":
            parent.send(event="phase", pid=os.getpid())
            time.sleep(600)

if __name__ == "__main__":
    serve_once(work)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "worker_for_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    yield "worker_for_test"


def test_result_and_events_come_back(module: str) -> None:
    events: list[child.Message] = []
    assert child.run(module, {"do": "add", "a": 1, "b": 2}, timeout_s=60, on_event=events.append) == {"sum": 3}
    assert events == [{"event": "phase", "done": 1}]


def test_an_exception_keeps_its_words(module: str) -> None:
    with pytest.raises(WorkerError, match="ValueError: the number 7 is wrong"):
        child.run(module, {"do": "raise"}, timeout_s=60)


@pytest.mark.parametrize(("what", "words"), [("crash", "SIGSEGV"), ("memory", "SIGKILL.*memory"), ("exit", "code 5")])
def test_a_child_that_dies_is_an_error_with_the_end_of_its_log(module: str, what: str, words: str) -> None:
    with pytest.raises(WorkerError, match=words) as caught:
        child.run(module, {"do": what}, timeout_s=60)
    assert "a line for the log" in str(caught.value)


def test_a_child_that_hangs_is_stopped(module: str) -> None:
    pids: list[int] = []
    with pytest.raises(WorkerError, match="did not end within 3 s"):
        child.run(module, {"do": "hang"}, timeout_s=3, on_event=lambda event: pids.append(event["pid"]))
    assert not psutil.pid_exists(pids[0])


def test_a_module_that_does_not_exist_is_an_error(module: str) -> None:
    with pytest.raises(WorkerError, match="No module named"):
        child.run("no_such_module", {}, timeout_s=60)


def test_a_child_ends_when_its_parent_is_killed(module: str) -> None:
    code = (
        "from tasks import child\n"
        f"child.run({module!r}, {{'do': 'hang'}}, timeout_s=600, on_event=lambda e: print(e['pid'], flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)
