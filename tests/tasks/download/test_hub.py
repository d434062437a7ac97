"""The hub source, with the real huggingface_hub client against a hub on loopback."""

from __future__ import annotations

import email.utils
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from tasks.config import HubSource
from tasks.download import hub, hub_client, hub_files
from tasks.errors import (
    DiskFullError,
    IntegrityError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
    SourceUnreachableError,
    VinoflowError,
)
from tasks.progress import Step, listening
from tests.hub_server import FakeHub, Fault

REPOSITORY = "org/model"
TOKEN = "hf_" + "Secret0123456789"
WEIGHTS = save({"a": np.arange(500_000, dtype=np.float32).reshape(500, 1000), "b": np.zeros((7,), np.float16)})
SMALL = {
    "config.json": b'{"model_type": "llama", "hidden_size": 576}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}' * 100,
    "tokenizer_config.json": b"{}",
    "tokenizer.model": b"sentencepiece" * 50,
    "special_tokens_map.json": b"{}",
    "vocab.json": b"{}",
    "merges.txt": "Ġ t\n".encode(),
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
}
MODEL = SMALL | {"model.safetensors": WEIGHTS}
UNWANTED = {
    "README.md": b"# model",
    ".gitattributes": b"",
    "pytorch_model.bin": b"\x80pickle" * 10,
    "original/consolidated.00.pth": b"\x80pickle",
    "checkpoint.pt": b"\x80pickle",
    "model.ckpt": b"\x80pickle",
    "onnx/model.onnx": b"onnx",
    "model.Q4_0.gguf": b"GGUF",
    "consolidated.safetensors": WEIGHTS,
    "adapter_config.json": b"{}",
    "training_args.bin": b"\x80pickle",
}
CODE = {"modeling_own.py": b"import torch", "own/layers.py": b"pass"}


@pytest.fixture(scope="module", autouse=True)
def _one_client() -> Iterator[None]:
    """Keep huggingface_hub's HTTP client for all tests (it takes 0.1 s to make), and proxies out of it."""
    from huggingface_hub import close_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        close_session()
        yield
        close_session()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub_client, "BACKOFF_S", 0.01)
    with FakeHub() as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        yield fake


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made between attempts, in seconds; none of them is really waited for."""
    made: list[float] = []

    def rest(stop: threading.Event, seconds: float) -> bool:
        made.append(seconds)
        return stop.is_set()

    monkeypatch.setattr(hub_client, "_rest", rest)
    return made


def source(revision: str = "main", repository: str = REPOSITORY) -> HubSource:
    return HubSource(kind="hub", repository=repository, revision=revision)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Heard:
    """A listener that notes how far the steps came."""

    def __init__(self, fail: BaseException | None = None) -> None:
        self.began_with: list[tuple[str, float | None, str]] = []
        self.done: list[float] = []
        self.failed: list[bool] = []
        self.fail = fail

    def began(self, step: Step) -> None:
        self.began_with.append((step.name, step.total, step.unit))

    def moved(self, step: Step) -> None:
        self.done.append(step.done)
        if self.fail:
            raise self.fail

    def ended(self, step: Step, *, failed: bool) -> None:
        self.failed.append(failed)


# What is fetched


def test_a_branch_is_resolved_to_its_commit(server: FakeHub) -> None:
    commit = server.add(REPOSITORY, MODEL)
    other = server.add(REPOSITORY, SMALL, branch="refs/pr/1")
    assert hub.resolve(source("main")) == commit
    assert hub.resolve(source("refs/pr/1")) == other


def test_a_pinned_revision_needs_no_network(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.resolve(source("a" * 40)) == "a" * 40
    assert server.requests == []


def test_fetch_takes_what_an_export_needs_and_nothing_else(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL | UNWANTED | CODE)
    heard = Heard()
    with listening(heard):
        hub.fetch(source(), commit, tmp_path / "model")
    assert files_in(tmp_path / "model") == MODEL
    assert set(server.served) == set(MODEL)
    assert not (tmp_path / "model" / hub_files.PARTS).exists()
    size = sum(map(len, MODEL.values()))
    assert heard.began_with == [("download", size, "bytes")]
    assert heard.done == sorted(heard.done)
    assert heard.done[-1] == size
    assert heard.failed == [False]


def test_python_files_come_with_code_alone(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL | UNWANTED | CODE)
    hub.fetch(source(), commit, tmp_path, code=True)
    assert files_in(tmp_path) == MODEL | CODE


def test_sharded_weights_are_those_of_the_index(server: FakeHub, tmp_path: Path) -> None:
    sharded = SMALL | shards()
    commit = server.add(REPOSITORY, sharded | {"consolidated.safetensors": WEIGHTS, "pytorch_model.bin": b"\x80"})
    hub.fetch(source(), commit, tmp_path)
    assert files_in(tmp_path) == sharded


def test_the_client_of_the_hub_gets_the_same_files(server: FakeHub, tmp_path: Path) -> None:
    """The fake hub is close enough to the real one for huggingface_hub's own download."""
    from huggingface_hub import snapshot_download

    commit = server.add(REPOSITORY, MODEL)
    snapshot_download(REPOSITORY, revision="main", local_dir=tmp_path / "theirs", endpoint=server.url, token=False)
    hub.fetch(source(), commit, tmp_path / "ours")
    theirs = files_in(tmp_path / "theirs")
    assert files_in(tmp_path / "ours") == {n: d for n, d in theirs.items() if not n.startswith(".cache/")}


def test_a_repository_of_more_than_a_thousand_files_is_listed_whole(server: FakeHub, tmp_path: Path) -> None:
    many = {f"logs/{number}.md": b"" for number in range(1500)}
    commit = server.add(REPOSITORY, many | MODEL)  # a plain listing would end before the model's files
    hub.fetch(source(), commit, tmp_path)
    assert files_in(tmp_path) == MODEL


def test_a_second_fetch_downloads_nothing(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    hub.fetch(source(), commit, tmp_path)
    before = server.served.copy()
    hub.fetch(source(), commit, tmp_path)
    assert server.served == before


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf"])
@given(name=st.text(max_size=20) | st.sampled_from(["model", "tokenizer", "vocab", "merges", "a/b"]))
def test_pickled_and_foreign_weights_are_never_wanted(suffix: str, name: str) -> None:
    assert not hub.wanted(name + suffix, code=True)


@given(parts=st.lists(st.sampled_from(["..", ".", "", "a", "additional_chat_templates", "\\"]), max_size=4))
@pytest.mark.parametrize("name", ["tokenizer.json", "x.jinja", "x.py", "model.safetensors", "..py", ".py"])
def test_no_wanted_name_leaves_the_folder(parts: list[str], name: str) -> None:
    path = "/".join([*parts, name])
    if hub.wanted(path, code=True):
        assert not PurePosixPath(path).is_absolute()
        assert ".." not in PurePosixPath(path).parts
        assert "\\" not in path


# Interruptions


def test_a_later_call_goes_on_where_the_connection_was_cut(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults.append(Fault("/storage/org/model/" + commit + "/model.safetensors", cut_at=700_001))
    heard = Heard()
    with pytest.raises(SourceUnreachableError, match=r"model\.safetensors"), listening(heard):
        hub.fetch(source(), commit, tmp_path)
    assert server.served["model.safetensors"] == 700_001
    assert not (tmp_path / "model.safetensors").exists()
    assert heard.failed == [True]
    server.faults.clear()
    server.served.clear()
    with listening(heard):
        hub.fetch(source(), commit, tmp_path)
    assert server.served == {"model.safetensors": len(WEIGHTS) - 700_001}
    assert files_in(tmp_path) == MODEL


def test_a_cut_is_mended_within_the_call(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults += [Fault("/storage/", cut_at=at, times=1) for at in range(100_000, 1_000_000, 100_000)]
    hub.fetch(source(), commit, tmp_path)  # nine cuts, more than ATTEMPTS: each brought something
    assert files_in(tmp_path) == MODEL
    assert server.served["tokenizer.model"] + server.served["model.safetensors"] == len(WEIGHTS) + 650


def test_a_later_call_goes_on_after_a_kill(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults.append(Fault("/model.safetensors", hold_at=900_000))
    program = (
        "from pathlib import Path; from tasks.config import HubSource; from tasks.download import hub\n"
        f"source = HubSource(kind='hub', repository='{REPOSITORY}', revision='main')\n"
        f"hub.fetch(source, '{commit}', Path({str(tmp_path)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    try:
        while child.poll() is None and not any(
            p.stat().st_size >= 900_000
            for p in (tmp_path / hub_files.PARTS).glob("model.safetensors*")  # which stays; the others come and go
        ):
            time.sleep(0.02)
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    server.faults.clear()
    server.served.clear()
    hub.fetch(source(), commit, tmp_path)
    assert server.served["model.safetensors"] == len(WEIGHTS) - 900_000
    assert files_in(tmp_path) == MODEL


def test_an_interrupt_ends_the_download_and_keeps_its_parts(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults.append(Fault("/model.safetensors", hold_at=900_000))
    monkeypatch.setattr(hub_client, "TIMEOUT_S", 0.5)
    with pytest.raises(KeyboardInterrupt), listening(Heard(fail=KeyboardInterrupt())):
        hub.fetch(source(), commit, tmp_path)
    held = f"/storage/{REPOSITORY}/{commit}/model.safetensors"
    assert server.paths().count(held) == 1  # not asked for again after the interrupt
    server.faults.clear()
    server.served.clear()
    hub.fetch(source(), commit, tmp_path)
    assert server.served["model.safetensors"] == len(WEIGHTS) - 900_000


def test_a_hub_without_ranges_sends_the_file_again(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults += [Fault("/storage/", cut_at=500_000, times=2), Fault("/storage/", ranges=False)]
    hub.fetch(source(), commit, tmp_path)
    assert files_in(tmp_path) == MODEL


# Hashes


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_refused_by_name_and_fetched_anew(server: FakeHub, tmp_path: Path, name: str) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults.append(Fault("/" + name, flip=True))
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        hub.fetch(source(), commit, tmp_path)
    assert name not in {path.name for path in tmp_path.rglob("*")}
    assert not list((tmp_path / hub_files.PARTS).glob(f"{name}*"))
    server.faults.clear()
    server.served.clear()
    hub.fetch(source(), commit, tmp_path)
    assert server.served[name] == len(MODEL[name])
    assert files_in(tmp_path) == MODEL


@pytest.mark.parametrize(("name", "stated"), [("model.safetensors", "0" * 64), ("config.json", "0" * 40)])
def test_a_file_that_is_not_the_stated_one_is_refused(server: FakeHub, tmp_path: Path, name: str, stated: str) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.stated[name] = stated
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        hub.fetch(source(), commit, tmp_path)


def test_a_file_that_is_shorter_than_stated_is_begun_again(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults += [Fault("/storage/", cut_at=1000, times=1), Fault("/storage/", status=416)]
    with pytest.raises(IntegrityError, match=r"shorter than the \d+ bytes"):
        hub.fetch(source(), commit, tmp_path)
    assert not list((tmp_path / hub_files.PARTS).glob("tokenizer.model*"))
    server.faults.clear()
    hub.fetch(source(), commit, tmp_path)
    assert files_in(tmp_path) == MODEL


def test_a_file_that_changed_on_the_disk_is_fetched_anew(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    hub.fetch(source(), commit, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * len(MODEL["tokenizer.json"]))
    hub.fetch(source(), commit, tmp_path)
    assert files_in(tmp_path) == MODEL


def test_a_hub_that_states_no_hash_is_refused(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    listing = {"id": REPOSITORY, "sha": commit, "siblings": [{"rfilename": "config.json"}]}
    server.faults.append(Fault("/api/", body=json.dumps(listing).encode()))
    with pytest.raises(SourceError, match=r"no hash of config\.json"):
        hub.fetch(source(), commit, tmp_path)


def test_a_hub_that_answers_for_another_commit_is_refused(server: FakeHub, tmp_path: Path) -> None:
    server.add(REPOSITORY, MODEL, branch="b" * 40)
    with pytest.raises(SourceError, match="answered for the commit"):
        hub.fetch(source(), "b" * 40, tmp_path)


# Errors of the hub


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_gated_repository_says_what_to_do(
    server: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    server.add(REPOSITORY, MODEL)
    server.gated[REPOSITORY] = "hf_another"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceAccessError) as caught:
        hub.resolve(source())
    assert f"{server.url}/{REPOSITORY}" in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_closed_repository_is_an_access_error(server: FakeHub, status: int) -> None:
    server.faults.append(Fault("/api/", status=status))
    with pytest.raises(SourceAccessError, match=f"status {status}.*HF_TOKEN"):
        hub.resolve(source())


def test_missing_repositories_and_revisions_are_told_apart(server: FakeHub) -> None:
    server.add(REPOSITORY, MODEL)
    with pytest.raises(SourceNotFoundError, match=r"org/other main at .*no such repository"):
        hub.resolve(source(repository="org/other"))
    with pytest.raises(SourceNotFoundError, match="no such branch, tag or commit"):
        hub.resolve(source("v9"))
    with pytest.raises(SourceNotFoundError, match="cannot be a repository"):
        hub.resolve(source(repository="a--b/.."))


def test_a_file_that_vanished_is_named(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults.append(Fault("/vocab.json", status=404, headers={"X-Error-Code": "EntryNotFound"}))
    with pytest.raises(SourceNotFoundError, match=r"vocab\.json"):
        hub.fetch(source(), commit, tmp_path)


@pytest.mark.parametrize("path", ["/api/models", "/config.json", "/storage/"])
def test_retry_after_is_honoured(server: FakeHub, tmp_path: Path, rests: list[float], path: str) -> None:
    commit = server.add(REPOSITORY, SMALL | {"model.safetensors": WEIGHTS})
    server.faults.append(Fault(path, status=429, headers={"Retry-After": "7"}, times=2))
    hub.fetch(source(), commit, tmp_path)
    assert rests == [7.0, 7.0]
    assert files_in(tmp_path) == MODEL


def test_the_hub_may_ask_to_wait_in_other_ways(server: FakeHub, rests: list[float]) -> None:
    commit = server.add(REPOSITORY, MODEL)
    date = email.utils.format_datetime(email.utils.localtime(None).replace(year=2001))
    server.faults += [
        Fault(
            "/api/", status=429, headers={"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"x";q=5;w=300'}, times=1
        ),
        Fault("/api/", status=503, headers={"Retry-After": "3"}, times=1),
        Fault("/api/", status=429, headers={"Retry-After": date}, times=1),  # long past: the usual pause
    ]
    assert hub.resolve(source()) == commit
    assert rests == [55.0, 3.0, 0.04]


def test_a_hub_that_limits_for_ever_is_asked_so_many_times(server: FakeHub, rests: list[float]) -> None:
    server.faults.append(Fault("/api/", status=429, headers={"Retry-After": "9"}))
    with pytest.raises(SourceUnreachableError, match="wait 9 s"):
        hub.resolve(source())
    assert len(server.requests) == hub_client.ATTEMPTS
    assert rests == [9.0] * (hub_client.ATTEMPTS - 1)


def test_a_wait_that_is_too_long_is_an_error_at_once(server: FakeHub, rests: list[float]) -> None:
    server.faults.append(Fault("/api/", status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(SourceUnreachableError, match="wait 3600 s"):
        hub.resolve(source())
    assert (len(server.requests), rests) == (1, [])


def test_errors_of_the_server_are_tried_again(server: FakeHub, tmp_path: Path, rests: list[float]) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults += [Fault("/api/", status=502, times=2), Fault("/tokenizer.json", status=500, times=1)]
    hub.fetch(source(), commit, tmp_path)
    assert files_in(tmp_path) == MODEL
    assert rests == [0.01, 0.02, 0.01]


def test_a_server_that_always_fails_is_unreachable(server: FakeHub) -> None:
    server.faults.append(Fault("/api/", status=503))
    with pytest.raises(SourceUnreachableError, match="503"):
        hub.resolve(source())
    assert len(server.requests) == hub_client.ATTEMPTS


def test_other_refusals_are_not_tried_again(server: FakeHub) -> None:
    server.faults.append(Fault("/api/", status=400))
    with pytest.raises(SourceError, match="400"):
        hub.resolve(source())
    assert len(server.requests) == 1


def test_a_page_that_is_no_answer_of_a_hub(server: FakeHub) -> None:
    server.faults.append(Fault("/api/", body=b"<html>Log in to the hotel's network</html>"))
    with pytest.raises(SourceError, match="did not answer as a hub does"):
        hub.resolve(source())


def test_a_server_that_is_down_is_named(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub() as gone:
        url = gone.url
    monkeypatch.setenv("HF_ENDPOINT", url.replace("//", "//me:pass@"))
    with pytest.raises(SourceUnreachableError, match=url) as caught:
        hub.resolve(source())
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[::1", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_none(server: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SourceUnreachableError, match="HF_ENDPOINT"):
        hub.resolve(source())


def test_a_server_that_says_nothing_is_unreachable(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(hub_client, "ATTEMPTS", 2)
    commit = server.add(REPOSITORY, MODEL)
    server.faults.append(Fault("/tokenizer.json", hold_at=10))
    with pytest.raises(SourceUnreachableError, match=r"tokenizer\.json.*Timeout"):
        hub.fetch(source(), commit, tmp_path)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_is_said(server: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SourceUnreachableError, match=f"{name}=1"):
        hub.resolve(source())
    assert server.requests == []


def test_offline_mode_from_before_the_import_is_said(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnreachableError, match="HF_HUB_OFFLINE"):
        hub.resolve(source())


# Token and telemetry


def test_the_token_goes_to_the_hub_and_nowhere_else(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.gated[REPOSITORY] = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fetch(source(), commit, tmp_path)
    hub.structure(source(), commit)
    stored = [request for request in server.requests if request.path.startswith("/storage/")]
    asked = [request for request in server.requests if request not in stored]
    assert {request.headers.get("authorization") for request in asked} == {f"Bearer {TOKEN}"}
    assert stored
    assert not any("authorization" in request.headers for request in stored)


@pytest.mark.parametrize("token", [TOKEN + "\x00", TOKEN + "\u2026", "Bearer " + TOKEN])
def test_a_token_that_is_none_is_not_shown(server: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    Path(constants.HF_TOKEN_PATH).write_text(token, encoding="utf-8")
    with pytest.raises(SourceAccessError) as caught:
        hub.resolve(source())
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 503])
def test_no_error_shows_the_token(server: FakeHub, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    echo = json.dumps({"error": f"Bearer {TOKEN}"}).encode()
    server.faults.append(Fault("/api/", status=status, body=echo, headers={"X-Error-Message": TOKEN}))
    with pytest.raises(VinoflowError) as caught:
        hub.resolve(source())
    assert TOKEN not in str(caught.value)
    assert server.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_telemetry_is_off_unless_it_is_turned_on(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    server.add(REPOSITORY, MODEL)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    hub.resolve(source())
    off = [constants.HF_HUB_DISABLE_TELEMETRY]
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    hub.resolve(source())
    off.append(constants.HF_HUB_DISABLE_TELEMETRY)
    assert off == [False, True]
    assert "torch/" not in server.requests[-1].headers["user-agent"]


# The disk


def test_a_disk_that_is_too_small_is_said_before_the_download(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.add(REPOSITORY, MODEL)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(DiskFullError, match=r"2\.0 MB are still to be fetched and 1\.0 MB are free"):
        hub.fetch(source(), commit, tmp_path)
    assert not server.served


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_meanwhile_is_said_and_the_parts_are_kept(server: FakeHub, small_disk: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    filler = small_disk / "filler"
    server.faults.append(Fault("/storage/", act=lambda: filler.write_bytes(b"x" * 3_500_000), times=1))
    folder = small_disk / "model"
    with pytest.raises(DiskFullError, match=str(folder)):
        hub.fetch(source(), commit, folder)
    filler.unlink()
    kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert kept > 0
    server.served.clear()
    hub.fetch(source(), commit, folder)
    assert sum(server.served.values()) == sum(map(len, MODEL.values())) - kept
    assert files_in(folder) == MODEL


def test_a_folder_that_cannot_be_made(server: FakeHub, tmp_path: Path) -> None:
    commit = server.add(REPOSITORY, MODEL)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceError, match="cannot be filled"):
        hub.fetch(source(), commit, tmp_path / "file" / "model")


# Repositories without usable weights


@pytest.mark.parametrize("ask", ["fetch", "structure"])
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"pytorch_model.bin": b"\x80"}, r"only pytorch_model\.bin.*save_pretrained"),
        ({"model.Q4_0.gguf": b"GGUF"}, r"only model\.Q4_0\.gguf"),
        ({}, "no weights at all"),
        ({"adapter_model.safetensors": WEIGHTS}, "is an adapter"),
        ({"model.safetensors.index.json": b"{}"}, "names no weights"),
        ({"model.safetensors.index.json": b"[]"}, "must be a JSON object"),
        ({"model.safetensors.index.json": b"{"}, "is not JSON"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'}, r"names 'x\.safetensors'"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "config.json"}}'}, r"names 'config\.json'"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}', "../x.safetensors": WEIGHTS},
            r"names '\.\./x\.safetensors'",
        ),
    ],
)
def test_weights_that_cannot_be_used_are_named(
    server: FakeHub, tmp_path: Path, ask: str, files: dict[str, bytes], says: str
) -> None:
    commit = server.add(REPOSITORY, SMALL | files)
    with pytest.raises(SourceError, match=says):
        hub.fetch(source(), commit, tmp_path) if ask == "fetch" else hub.structure(source(), commit)
    assert files_in(tmp_path) == {}


# The structure


def shards() -> dict[str, bytes]:
    one = {"model.embed.weight": np.ones((300, 64), np.float32)}
    two = {f"model.layers.{n}.a_rather_long_name.weight": np.zeros((2, 3), np.float16) for n in range(2000)}
    names: dict[str, dict[str, NDArray[Any]]] = {
        "model-00001-of-00002.safetensors": one,
        "model-00002-of-00002.safetensors": two,
    }
    index = {"metadata": {}, "weight_map": {tensor: name for name, tensors in names.items() for tensor in tensors}}
    return {name: save(tensors) for name, tensors in names.items()} | {
        "model.safetensors.index.json": json.dumps(index).encode()
    }


def test_structure_reads_headers_alone(server: FakeHub) -> None:
    commit = server.add(REPOSITORY, MODEL | UNWANTED)
    config, tensors = hub.structure(source(), commit)
    assert config == {"model_type": "llama", "hidden_size": 576}
    assert tensors == {"a": ("F32", (500, 1000)), "b": ("F16", (7,))}
    wanted = {"config.json": len(SMALL["config.json"]), "model.safetensors": hub_client.HEADER_BYTES}
    while len(server.served) < len(wanted):  # the hub counts what it has sent after it has sent it
        time.sleep(0.01)
    assert server.served == wanted


def test_structure_of_shards_agrees_with_the_hub_s_client(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    commit = server.add(REPOSITORY, SMALL | shards())
    _, tensors = hub.structure(source(), commit)
    assert len(tensors) == 2001
    files = shards()
    header = 8 + int.from_bytes(files["model-00002-of-00002.safetensors"][:8], "little")
    assert header > hub_client.HEADER_BYTES  # read in two requests
    assert server.served["model-00002-of-00002.safetensors"] == hub_client.HEADER_BYTES + header
    api = HfApi(endpoint=server.url, token=False)
    for name in [name for name in files if name.endswith(".safetensors")]:
        theirs = api.parse_safetensors_file_metadata(REPOSITORY, name, revision=commit).tensors
        for tensor, info in theirs.items():
            assert tensors.pop(tensor) == (info.dtype, tuple(info.shape))
    assert tensors == {}


def test_structure_stops_reading_where_ranges_are_not_known(server: FakeHub) -> None:
    weights = save({"a": np.zeros((30_000_000,), np.float32)})
    commit = server.add(REPOSITORY, SMALL | {"model.safetensors": weights})
    server.faults.append(Fault("/storage/", ranges=False))
    assert hub.structure(source(), commit)[1] == {"a": ("F32", (30_000_000,))}
    assert server.served["model.safetensors"] < len(weights) // 2


@pytest.mark.parametrize("weights", [b"", b"\xff" * 20, b"\x02" + b"\0" * 7 + b"[]", b"\x08" + b"\0" * 7 + b'{"a": 1}'])
def test_structure_of_what_is_no_safetensors_file(server: FakeHub, weights: bytes) -> None:
    commit = server.add(REPOSITORY, SMALL | {"model.safetensors": weights})
    with pytest.raises(SourceError, match=r"model\.safetensors .*not a safetensors file"):
        hub.structure(source(), commit)


def test_structure_checks_what_it_reads(server: FakeHub) -> None:
    commit = server.add(REPOSITORY, MODEL)
    server.faults.append(Fault("/config.json", body=b'{"model_type": "other", "hidden_size": 576}'))
    with pytest.raises(IntegrityError, match=r"config\.json"):
        hub.structure(source(), commit)


def test_structure_without_config(server: FakeHub) -> None:
    commit = server.add(REPOSITORY, {"model.safetensors": WEIGHTS})
    with pytest.raises(SourceError, match=r"no config\.json"):
        hub.structure(source(), commit)
