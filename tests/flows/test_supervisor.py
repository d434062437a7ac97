"""Servers that are kept running: in order, begun again, given up, stopped with all that they started."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.supervisor import Running, Service, supervise
from tasks.errors import ServingError
from tests.servers import free_port

SERVER = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def service(folder: Path, name: str, code: str = SERVER) -> Service:
    port = free_port()
    return Service(
        name=name,
        command=[sys.executable, "-c", code, str(port)],
        environment={},
        log=folder / f"{name}.log",
        health=f"http://127.0.0.1:{port}/" if code == SERVER else "",
    )


def test_what_dies_is_begun_again_and_all_of_it_ends(tmp_path: Path) -> None:
    troubles: list[str] = []
    seen: list[psutil.Process] = []
    ready = threading.Event()

    def act() -> None:
        """Kill the first server, see it come again, ask for the end."""
        ready.wait(60)
        first, second = psutil.Process().children()
        seen.extend([first, second, *first.children(), *second.children()])
        first.kill()
        while not troubles or len(psutil.Process().children()) < 2:
            time.sleep(0.05)
        seen.extend(psutil.Process().children(recursive=True))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=act)
    thread.start()
    services = [service(tmp_path, "one"), service(tmp_path, "two")]
    supervise(services, on_ready=ready.set, on_trouble=troubles.append)
    thread.join()
    assert len(troubles) == 1 and troubles[0].startswith("one ended with exit code -9: begun again")
    assert len(seen) >= 6
    psutil.wait_procs(seen, timeout=10)
    assert not [one for one in seen if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_one_that_does_not_start_says_why_and_the_others_end(tmp_path: Path) -> None:
    good = service(tmp_path, "good")
    bad = replace(service(tmp_path, "bad", "raise SystemExit('no database')"), health="http://127.0.0.1:1/")
    with pytest.raises(ServingError, match=r"bad ended with exit code 1: no database \(.*bad\.log\)"):
        supervise([good, bad], on_ready=lambda: None, on_trouble=print)
    assert not psutil.Process().children()


def test_one_that_dies_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    running = Running(service(tmp_path, "bad", "raise SystemExit('no database')"))
    for _ in range(5):
        running.process.wait()
        assert running.problem() == "ended with exit code 1"
        running.restart()
    running.process.wait()
    with pytest.raises(ServingError, match=r"bad failed 5 times in a row: no database"):
        running.restart()
    running.stop()


def test_one_that_hangs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.supervisor._ASK_S", 0)
    running = Running(service(tmp_path, "one"))
    try:
        running.wait()
        assert running.problem() == ""
        monkeypatch.setattr(running, "answers", lambda: False)
        assert [running.problem() for _ in range(3)] == ["", "", "did not answer 3 times"]
    finally:
        running.stop()
