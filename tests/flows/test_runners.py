"""Which cluster a batch goes to; tests/end_to_end/test_batch.py has real ones."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from flows.runners import task_runner
from tasks.config import Batch
from tasks.errors import BatchError


def test_ray_without_an_address_is_a_cluster_of_ones_own() -> None:
    """Else Ray joins the one of which /tmp/ray has word, dead or alive."""
    runner = task_runner(Batch(runner="ray", workers=3))
    assert (runner.init_kwargs["address"], runner.init_kwargs["num_cpus"]) == ("local", 3)


def test_rays_token_is_shown_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that it is put back
    monkeypatch.delenv("RAY_AUTH_MODE")
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = Batch(runner="ray", address=f"ray://127.0.0.1:{server.getsockname()[1]}")
        task_runner(there)
        assert "RAY_AUTH_MODE" not in os.environ
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("token")
        assert task_runner(there).address == there.address
        assert os.environ["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "ray://127.0.0.1:99999"])
def test_an_address_where_nothing_is(address: str) -> None:
    with pytest.raises(
        BatchError, match=f"no cluster answers at address {address}: .*; start it, or leave address out"
    ):
        task_runner(Batch(runner="ray", address=address))


def test_an_address_that_names_no_place_is_the_runners_own_business() -> None:
    assert task_runner(Batch(runner="ray", address="auto")).address == "auto"
