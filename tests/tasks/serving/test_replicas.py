"""Two replicas with nothing in common but an MLflow server: both follow the alias, and answer without it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.records import ExportedModel
from tests import small
from tests.servers import mlflow
from tests.serving import Served, give, register_version, serving, variant

pytestmark = pytest.mark.slow
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


def ask(replica: Served) -> httpx.Response:
    return httpx.post(f"{replica.url}/v1/chat/completions", json=QUESTION, timeout=120)


def health(replica: Served) -> dict[str, Any]:
    return dict(httpx.get(f"{replica.url}/health/ready", timeout=30).json())


def wait_until(so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not so():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_replicas_follow_one_registry(
    tiny_export: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VINOFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VINOFLOW_CACHE", str(tmp_path / "cache"))
    recipe = small.recipe("tiny")
    with ExitStack() as hosts, ExitStack() as registry:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.enter_context(mlflow(tmp_path / "mlflow")))
        first = register_version(tiny_export, recipe, tmp_path)
        second = register_version(variant(tiny_export, tmp_path / "variant", 1), recipe, tmp_path)
        give(first)
        replicas = [
            hosts.enter_context(
                serving(
                    "tiny@champion", tmp_path / host, environment={"VINOFLOW_CACHE": str(tmp_path / host / "cache")}
                )
            )
            for host in ("a", "b")
        ]
        answers: list[httpx.Response] = []
        moved = threading.Event()

        def client(replica: Served) -> None:
            while not moved.is_set():
                answers.append(ask(replica))

        clients = [threading.Thread(target=client, args=(replica,)) for replica in replicas]
        for thread in clients:
            thread.start()
        try:
            give(second)
            wait_until(lambda: all(health(one)["version"] == "tiny/2" for one in replicas), "a replica did not move")
        finally:
            moved.set()
            for thread in clients:
                thread.join()
        assert {answer.status_code for answer in answers} == {200}
        digests = {"tiny/1": first.digest, "tiny/2": second.digest}
        for answer in answers:
            assert answer.headers["x-vinoflow-digest"] == digests[answer.headers["x-vinoflow-version"]]
        assert answers[0].headers["x-vinoflow-version"] == "tiny/1"

        registry.close()
        wait_until(lambda: all(health(one)["swap"]["state"] == "unreachable" for one in replicas), "nobody noticed")
        for replica in replicas:
            assert ask(replica).headers["x-vinoflow-version"] == "tiny/2"
            assert health(replica)["ready"] is True
