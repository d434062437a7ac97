"""Which files of a repository are of use, and where their parts lie while they come."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from tasks.manifest import sha256_file

PARTS = ".parts"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_SMALL = re.compile(
    r"(config|generation_config|(pre)?processor_config|special_tokens_map|added_tokens|chat_template|tekken)\.json"
    r"|tokenizer[\w.-]*\.json|(vocab|merges)[\w.-]*\.(json|txt|bpe)|[\w.-]+\.(model|tiktoken|jinja)"
    r"|additional_chat_templates/[\w.-]+\.jinja"
)
_CODE = re.compile(r"(\w[\w.-]*/)*\w[\w.-]*\.py")
WEIGHTS = re.compile(r"(\w[\w.-]*/)*\w[\w.-]*\.safetensors")
OTHER_WEIGHTS = re.compile(r".*\.(bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|safetensors)")


@dataclass(frozen=True)
class RemoteFile:
    """One file as the hub states it; `digest` is a SHA-256 (64 hex) or a git blob id (40 hex)."""

    name: str
    size_bytes: int
    digest: str

    def digest_of(self, path: Path) -> str:
        """Return the same digest of a file on this machine."""
        if len(self.digest) == 64:
            return sha256_file(path)
        blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: blob).hexdigest()


def wanted(name: str, *, code: bool) -> bool:
    """Return whether a file can be of use to an export, by its name: never pickled weights; `code`: Python too."""
    if name == INDEX or _SMALL.fullmatch(name) or WEIGHTS.fullmatch(name):
        return True
    return code and _CODE.fullmatch(name) is not None


def size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def part_of(file: RemoteFile, folder: Path) -> Path:
    """Return where a file of the folder lies until its hash is right."""
    return folder / PARTS / f"{file.name.replace('/', '--')}.{file.digest[:16]}"
