"""Real servers on loopback, which end with the test that started them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import yaml

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[str], health: str, *, log: Path, **environment: str) -> Iterator[None]:
    """Run a server until the block ends; the block begins when its health page answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        answers(process, health, log=log)
        yield
    finally:
        stop(process)


def answers(process: subprocess.Popen[Any], health: str, *, log: Path) -> None:
    """Wait until a server's health page answers."""
    deadline = time.monotonic() + 180
    while True:
        try:
            urlopen(health, timeout=5).close()
            return
        except (URLError, ConnectionError, TimeoutError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)


def listens(port: int, *, log: Path) -> None:
    """Wait until something listens on a port of loopback."""
    deadline = time.monotonic() + 180
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process: asked first, then killed, as one has to be that was started where signals are ignored."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def deployments() -> Any:
    """Return the project's prefect.yaml with what is nightly half a day from now: a test may run at three at night."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in content["deployments"]:
        for schedule in deployment.get("schedules", []):
            schedule["cron"] = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"
    return content


@contextmanager
def prefect(folder: Path) -> Iterator[str]:
    """Run a Prefect server with its database in a folder; yield the URL of its API."""
    folder.mkdir()
    port = free_port()
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    database = f"sqlite+aiosqlite:///{folder}/prefect.db"
    url = f"http://127.0.0.1:{port}/api"
    settings = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    with running(command, f"{url}/health", log=folder / "log", **settings):
        yield url


@contextmanager
def mlflow(folder: Path, *, artifacts: str = "", **environment: str) -> Iterator[str]:
    """Run an MLflow server with its database in a folder, its artifacts too unless elsewhere; yield its URL."""
    folder.mkdir()
    port = free_port()
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        artifacts or f"{folder}/artifacts",
    ]
    url = f"http://127.0.0.1:{port}"
    switches = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, f"{url}/health", log=folder / "log", MLFLOW_TRACKING_URI="", **switches, **environment):
        yield url


@contextmanager
def s3(folder: Path, *, bucket: str = "bucket") -> Iterator[dict[str, str]]:
    """Run an S3 server with an empty bucket; yield the environment by which clients find it."""
    folder.mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with running(command, f"{url}/moto-api/", log=folder / "log"):
        urlopen(Request(f"{url}/{bucket}", method="PUT")).close()
        yield {
            "AWS_ENDPOINT_URL": url,
            "MLFLOW_S3_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def up(folder: Path, *options: str) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Run `vinoflow up` until the block ends; it has to end by itself then, with all that it started."""
    ports = ("--mlflow-port", str(free_port()), "--prefect-port", str(free_port()))
    command = [sys.executable, "-m", "flows.cli", "up", *ports, *options, "--json"]
    told, log = folder / "up.out", folder / "up.log"
    with told.open("wb") as output, log.open("ab") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=errors)
    try:
        deadline = time.monotonic() + 300
        while not told.read_text().strip():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield psutil.Process(process.pid), json.loads(told.read_text())
        ours = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0, log.read_text()[-3000:]
        psutil.wait_procs(ours, timeout=10)
        assert not [one for one in ours if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    finally:
        stop(process)
