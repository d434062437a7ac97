from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tasks.errors import IntegrityError
from tasks.manifest import MANIFEST_NAME, Manifest, build_manifest, read_manifest, verify, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes(b"alpha")
    (tmp_path / "sub" / "b.bin").write_bytes(bytes(range(256)))
    write_manifest(tmp_path, build_manifest(tmp_path))
    return tmp_path


def test_manifest_names_sizes_and_hashes(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert [(entry.name, entry.size_bytes) for entry in manifest.files] == [("a.txt", 5), ("sub/b.bin", 256)]
    assert manifest.files[0].sha256 == hashlib.sha256(b"alpha").hexdigest()
    assert manifest.size_bytes == 261


def test_digest_is_of_the_content_alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "sub").mkdir()
    (other / "sub" / "b.bin").write_bytes(bytes(range(256)))
    (other / "a.txt").write_bytes(b"alpha")
    assert build_manifest(other).digest == read_manifest(folder).digest
    (other / "a.txt").write_bytes(b"alphA")
    assert build_manifest(other).digest != read_manifest(folder).digest


def test_every_single_bit_of_a_small_file_counts(folder: Path) -> None:
    manifest = read_manifest(folder)
    path = folder / "a.txt"
    for bit in range(40):
        damaged = bytearray(b"alpha")
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"a\.txt is damaged"):
            verify(folder, manifest)
    path.write_bytes(b"alpha")
    verify(folder, manifest)


def test_missing_added_and_resized_files_are_named(folder: Path) -> None:
    manifest = read_manifest(folder)
    (folder / "extra.py").write_text("boom")
    with pytest.raises(IntegrityError, match=r"extra\.py is not in the manifest"):
        verify(folder, manifest)
    (folder / "extra.py").unlink()
    (folder / "a.txt").write_bytes(b"alpha!")
    with pytest.raises(IntegrityError, match=r"a\.txt has 6 bytes, its manifest says 5"):
        verify(folder, manifest, deep=False)
    (folder / "a.txt").unlink()
    with pytest.raises(IntegrityError, match=r"a\.txt is missing"):
        verify(folder, manifest)


def test_a_manifest_that_was_changed_is_refused(folder: Path) -> None:
    digest = read_manifest(folder).digest
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"size_bytes": 5', '"size_bytes": 6'))
    assert read_manifest(folder).digest != digest
    with pytest.raises(IntegrityError, match="was changed"):
        read_manifest(folder, digest=digest)
    path.write_text("{}")
    with pytest.raises(IntegrityError, match="is not a manifest"):
        read_manifest(folder)
    path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "", "a\\..\\b"])
def test_names_that_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves the folder"):
        Manifest.model_validate({"files": [{"name": name, "size_bytes": 1, "sha256": "0" * 64}]})
