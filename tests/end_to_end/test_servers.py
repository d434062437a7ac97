"""The same commands against a real MLflow server and a real Prefect server on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.conftest import Vinoflow

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


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
        deadline = time.monotonic() + 180
        while True:
            try:
                urlopen(health, timeout=5).close()
                break
            except (URLError, ConnectionError, TimeoutError):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    folder, port = tmp_path / "mlflow-server", free_port()
    folder.mkdir()
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    url = f"http://127.0.0.1:{port}"
    switches = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, f"{url}/health", log=folder / "log", MLFLOW_TRACKING_URI="", **switches):
        yield url


@pytest.fixture
def prefect_server(tmp_path: Path) -> Iterator[str]:
    folder, port = tmp_path / "prefect-server", free_port()
    folder.mkdir()
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    database = f"sqlite+aiosqlite:///{folder}/prefect.db"
    url = f"http://127.0.0.1:{port}/api"
    settings = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    with running(command, f"{url}/health", log=folder / "log", **settings):
        yield url


def test_servers_are_used_where_they_are_set(
    vinoflow: Vinoflow, tiny_recipe: Path, home: Path, tmp_path: Path, mlflow_server: str, prefect_server: str
) -> None:
    servers = {"MLFLOW_TRACKING_URI": mlflow_server, "PREFECT_API_URL": prefect_server}
    outcome = json.loads(vinoflow("export-and-validate", tiny_recipe, "--json", **servers).stdout)
    assert (outcome["name"], outcome["version"], outcome["reused"]) == ("tiny", 1, False)
    assert not (home / "mlruns" / "mlflow.db").exists()
    assert not (home / "mlruns" / "prefect.db").exists()

    asked = Request(f"{prefect_server}/flow_runs/filter", data=b"{}", headers={"Content-Type": "application/json"})
    (run,) = json.load(urlopen(asked, timeout=30))
    assert (run["name"], run["state_type"]) == ("tiny", "COMPLETED")

    again = json.loads(vinoflow("export-and-validate", tiny_recipe, "--json", **servers).stdout)
    assert again["reused"] is True

    elsewhere = {**servers, "VINOFLOW_CACHE": str(tmp_path / "another-machine")}
    question = ("ask", "Hello", "--model", "tiny@latest", "--max-new-tokens", "8", "--json")
    answer = json.loads(vinoflow(*question, **elsewhere).stdout)
    assert answer["digest"] == outcome["digest"]
    pulled = tmp_path / "another-machine" / "models" / outcome["digest"]
    assert sorted(path.name for path in pulled.parent.iterdir() if path.is_dir()) == [outcome["digest"]]

    content = bytearray((pulled / "tokenizer.json").read_bytes())
    content[10] ^= 0x01
    (pulled / "tokenizer.json").write_bytes(content)
    refused = vinoflow(*question, expect=1, **elsewhere)
    assert "tokenizer.json is damaged" in refused.stderr
    assert "run again to fetch it anew" in refused.stderr
    assert json.loads(vinoflow(*question, **elsewhere).stdout)["text"] == answer["text"]

    (stored,) = (tmp_path / "mlflow-server" / "artifacts").rglob("openvino_model.bin")
    stored.write_bytes(stored.read_bytes()[:-1])
    damaged = vinoflow(*question, expect=1, **{**servers, "VINOFLOW_CACHE": str(tmp_path / "a-third")})
    assert "openvino_model.bin has" in damaged.stderr
