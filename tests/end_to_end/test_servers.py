"""The same commands against a real MLflow server and a real Prefect server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.conftest import Vinoflow
from tests.servers import BIN, free_port, prefect, running

pytestmark = pytest.mark.slow


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
    with prefect(tmp_path / "prefect-server") as url:
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
