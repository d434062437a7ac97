"""The same commands against a real MLflow server and a real Prefect server on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from flows.promotion import consider, promote
from tasks.registry import collect, connect, examine, garbage
from tests import small
from tests.conftest import Vinoflow
from tests.servers import mlflow, prefect

pytestmark = pytest.mark.slow


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    with mlflow(tmp_path / "mlflow-server") as url:
        yield url


@pytest.fixture
def prefect_server(tmp_path: Path) -> Iterator[str]:
    with prefect(tmp_path / "prefect-server") as url:
        yield url


def test_servers_are_used_where_they_are_set(
    vinoflow: Vinoflow, tiny_recipe: Path, home: Path, tmp_path: Path, mlflow_server: str, prefect_server: str
) -> None:
    servers = {"MLFLOW_TRACKING_URI": mlflow_server, "PREFECT_API_URL": prefect_server}
    (home / "mlruns" / "prefect.db").unlink()
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


def test_housekeeping_on_a_server(
    home: Path, tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes is gone on the server too, also where a kill came between the files and what names them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    for content in "abcd":
        small.version(tmp_path, content)
    promote(consider("small/3", alias="champion"))
    found = garbage(older_than=timedelta(0))
    assert [one.name for one in found] == ["small/1", "small/2"]
    get_artifact_repository(connect().get_logged_model(found[0].model_id).artifact_location).delete_artifacts()
    assert collect(found, older_than=timedelta(0)) == tuple(found)
    assert garbage(older_than=timedelta(0)) == []
    kept = {path.read_text() for path in (tmp_path / "mlflow-server").rglob("openvino_model.bin")}
    assert kept == {"c", "d"}
    assert [one.level for one in examine().wrong] == ["warning"], "openvino 1 is not here"
