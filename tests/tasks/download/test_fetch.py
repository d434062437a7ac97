from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.config import HubSource, LocalSource
from tasks.download import cached, download, identify
from tasks.errors import SourceError, SourceNotFoundError
from tasks.manifest import read_manifest, verify
from tests.hub_server import FakeHub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "my.model-0.5b"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("code")
    return folder


def test_a_local_folder_becomes_a_checkpoint_of_the_cache(home: Path, model: Path) -> None:
    source = LocalSource(kind="local", path=model)
    checkpoint = download(source)
    names = [entry.name for entry in read_manifest(checkpoint.path, digest=checkpoint.digest).files]
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert checkpoint.origin.location == str(model)
    verify(checkpoint.path, read_manifest(checkpoint.path))
    assert cached(source) == checkpoint == download(source)
    assert not [path for path in checkpoint.path.parent.iterdir() if path.suffix == ".partial"]
    assert sorted(path.name for path in model.iterdir())[0] == "config.json"  # nothing was written there


def test_code_is_taken_only_when_asked_for(home: Path, model: Path) -> None:
    checkpoint = download(LocalSource(kind="local", path=model), code=True)
    assert "modeling.py" in [entry.name for entry in read_manifest(checkpoint.path).files]


def test_an_edited_folder_is_another_checkpoint(home: Path, model: Path) -> None:
    source = LocalSource(kind="local", path=model)
    before = download(source)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(b"Weights")
    os.utime(model / "model.safetensors", ns=(0, 0))
    after = download(source)
    assert after.digest != before.digest
    verify(before.path, read_manifest(before.path))


def test_a_checkpoint_that_lost_a_file_is_made_again(home: Path, model: Path) -> None:
    source = LocalSource(kind="local", path=model)
    checkpoint = download(source)
    (checkpoint.path / "tokenizer.json").unlink()
    assert cached(source) is None
    assert download(source) == checkpoint
    verify(checkpoint.path, read_manifest(checkpoint.path))


def test_no_model_there(home: Path, model: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"has no config\.json"):
        download(LocalSource(kind="local", path=model / "nowhere"))
    (model / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="has no tokenizer"):
        download(LocalSource(kind="local", path=model))
    (model / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="no safetensors"):
        download(LocalSource(kind="local", path=model))


def test_a_hub_repository_goes_the_same_way(home: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    files = {
        "config.json": b"{}",
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"pickle",
    }
    with FakeHub() as hub:
        commit = hub.add("org/my.model", files)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        source = HubSource(kind="hub", repository="org/my.model", revision="main")
        checkpoint = download(source)
        assert (checkpoint.origin.revision, checkpoint.origin.requested) == (commit, "main")
        assert cached(source) is None  # a branch can move
        pinned = HubSource(kind="hub", repository="org/my.model", revision=commit)
    assert download(pinned).digest == checkpoint.digest  # from the cache: the hub is gone
    assert identify(pinned).revision == commit
    assert "pytorch_model.bin" not in [entry.name for entry in read_manifest(checkpoint.path).files]
