"""One hub repository, asked with patience: retries, Retry-After, resumed bytes, and errors of our own.

Names, tokens, addresses and errors are huggingface_hub's; the bytes are streamed here. Its own download (1.18 and
later) throws away what it has of a file when it is interrupted, and does not heed Retry-After.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks import secrecy
from tasks.config import COMMIT, HubSource
from tasks.download.hub_files import OTHER_WEIGHTS, RemoteFile, part_of, size_of, wanted
from tasks.errors import (
    IntegrityError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
    SourceUnreachableError,
    VinoflowError,
)

if TYPE_CHECKING:
    import httpx
    from huggingface_hub.hf_api import ModelInfo, RepoFile, RepoSibling


T = TypeVar("T")
Tensors = dict[str, tuple[str, tuple[int, ...]]]
ATTEMPTS = 5  # in a row without a new byte
BACKOFF_S = 1.0  # doubled after each attempt
LONGEST_WAIT_S = 120.0  # a hub that asks for more gets an error instead
TIMEOUT_S = 20.0  # without a byte
HEADER_BYTES = 100_000  # nearly every safetensors header fits: one request a file


class Hub:
    """One repository at one revision, asked with patience; all that goes wrong is one of our errors."""

    def __init__(self, source: HubSource, revision: str) -> None:
        """Read endpoint and token from the environment as it is now, not as it was at huggingface_hub's import."""
        from huggingface_hub import HfApi, constants, get_token

        secrecy.keep()
        if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
            os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
            constants.HF_HUB_DISABLE_TELEMETRY = True  # it may have been imported before
        endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.repository, self.revision = source.repository, revision
        self.endpoint = secrecy.without_secrets(endpoint)
        self.stop = threading.Event()
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
                raise SourceUnreachableError(f"{self} is not asked: {name}={os.environ[name]}; unset it to download")
        self.token = get_token()  # HF_TOKEN, or what `hf auth login` saved
        if self.token and not re.fullmatch(r"[!-~]+", self.token):  # httpx would quote it in its error
            raise SourceAccessError(f"{self}: HF_TOKEN has a character that no token has; set it anew")
        self.api = HfApi(endpoint=endpoint, token=self.token or False)

    def __str__(self) -> str:
        """Return the repository, revision and endpoint, for messages."""
        short = self.revision[:12] if COMMIT.fullmatch(self.revision) else self.revision
        return f"{self.repository} {short} at {self.endpoint}"

    def info(self, *, files: bool = False) -> ModelInfo:
        """Return what the hub says of the revision; with `files`, their sizes and hashes too."""
        try:
            return self._ask(
                lambda: self.api.model_info(
                    self.repository, revision=self.revision, files_metadata=files, timeout=TIMEOUT_S
                )
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, VinoflowError):
                raise
            raise SourceError(f"{self} did not answer as a hub does: {error}; check HF_ENDPOINT and proxies") from error

    def files(self) -> dict[str, RemoteFile]:
        """Return the commit's files that vinoflow can make use of, by name, and the names of other weights."""
        from huggingface_hub.hf_api import RepoFile

        info = self.info(files=True)
        if info.sha != self.revision:
            raise SourceError(
                f"{self} answered for the commit {info.sha}: give that one, or the branch or tag you mean"
            )
        entries: list[RepoSibling | RepoFile] = list(info.siblings or ())
        if len(entries) >= 1000:  # huggingface_hub does not rely on this list beyond a thousand either
            tree = self._ask(
                lambda: list(self.api.list_repo_tree(self.repository, revision=self.revision, recursive=True))
            )
            entries = [entry for entry in tree if isinstance(entry, RepoFile)]
        return {
            entry.rfilename: self._remote_file(entry)
            for entry in entries
            if wanted(entry.rfilename, code=True) or OTHER_WEIGHTS.fullmatch(entry.rfilename)
        }

    def _remote_file(self, entry: RepoSibling | RepoFile) -> RemoteFile:
        size, digest = (entry.size, entry.blob_id) if entry.lfs is None else (entry.lfs.size, entry.lfs.sha256)
        if size is None or digest is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest):
            raise SourceError(
                f"{self} states no size or no hash of {entry.rfilename}: use a hub that does (HF_ENDPOINT)"
            )
        return RemoteFile(entry.rfilename, size, digest)

    def read_json(self, file: RemoteFile) -> dict[str, Any]:
        """Return a small JSON file's content, checked."""
        data = self._head(file, file.size_bytes)
        if file.digest not in (hashlib.sha256(data).hexdigest(), _blob_id(data)):
            raise IntegrityError(f"{file.name} of {self} is not the file that the hub states: try again later")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{file.name} of {self} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise SourceError(f"{file.name} of {self} must be a JSON object, and is {type(content).__name__}")
        return content

    def header(self, file: RemoteFile) -> Tensors:
        """Return the tensors that a safetensors file's header names, without its weights.

        Source: the safetensors format: 8 bytes of length (little-endian), then JSON.
        """
        head = self._head(file, min(HEADER_BYTES, file.size_bytes))
        end = 8 + int.from_bytes(head[:8], "little")
        if end > min(file.size_bytes, 100_000_000):  # the format's own limit
            raise SourceError(f"{file.name} of {self} is not a safetensors file: its header has no end")
        if end > len(head):
            head = self._head(file, end)
        try:
            header = json.loads(head[8:end])
            header.pop("__metadata__", None)
            return {name: (str(one["dtype"]), tuple(int(n) for n in one["shape"])) for name, one in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SourceError(f"{file.name} of {self} is not a safetensors file: {error}") from error

    def download(self, file: RemoteFile, folder: Path) -> None:
        """Fetch one file, from where its part ends, and give it its name once its hash is right."""
        target, part = folder / file.name, part_of(file, folder)
        if target.exists():
            if target.stat().st_size == file.size_bytes and file.digest_of(target) == file.digest:
                return
            target.unlink()
        part.touch()
        try:
            self._ask(lambda: self._append(file, part), file=file, arrived=lambda: size_of(part))
        except IntegrityError:
            part.unlink()
            raise
        found = file.digest_of(part)
        if found != file.digest:
            size = size_of(part)
            part.unlink()
            raise IntegrityError(
                f"{file.name} of {self} is damaged: {size} bytes with the hash {found[:12]} arrived, the hub states "
                f"{file.size_bytes} and {file.digest[:12]}; it is deleted, and fetched anew by the next run"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)

    def _append(self, file: RemoteFile, part: Path) -> None:
        import httpx

        have = size_of(part)
        if have >= file.size_bytes:
            return
        with self._get(file, f"bytes={have}-") as response, part.open("ab") as out:
            if response.status_code != 206:  # all of it comes again: this server knows no ranges
                out.truncate(0)
                have = 0
            for block in response.iter_bytes():
                if self.stop.is_set():
                    raise SourceError(f"{file.name} of {self} was stopped half-way: run again to go on")
                have += out.write(block)
                if have > file.size_bytes:
                    return
        if have < file.size_bytes:
            raise httpx.RemoteProtocolError(f"it ended after {have} of {file.size_bytes} bytes")

    def _head(self, file: RemoteFile, length: int) -> bytes:
        import httpx

        def request() -> bytes:
            data = bytearray()
            with self._get(file, f"bytes=0-{length - 1}") as response:
                for block in response.iter_bytes():
                    data += block
                    if len(data) >= length:  # a server that knows no ranges sends the weights next
                        break
            if len(data) < length:
                raise httpx.RemoteProtocolError(f"it ended after {len(data)} of {length} bytes")
            return bytes(data[:length])

        return self._ask(request, file=file) if length else b""

    @contextmanager
    def _get(self, file: RemoteFile, byte_range: str) -> Iterator[httpx.Response]:
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status

        url = hf_hub_url(self.repository, file.name, revision=self.revision, endpoint=self.api.endpoint)
        headers = {"Accept-Encoding": "identity", "Range": byte_range}  # identity: sizes are the file's own
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            hf_raise_for_status(response)
            yield response

    def _ask(
        self, request: Callable[[], T], *, file: RemoteFile | None = None, arrived: Callable[[], int] = lambda: 0
    ) -> T:
        """Make a request, again where that can help; attempts that brought new bytes are not counted."""
        import httpx
        from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

        failures, most = 0, arrived()
        while True:
            try:
                return request()
            except HFValidationError as error:
                raise SourceNotFoundError(f"{self.repository!r} cannot be a repository: {error}") from error
            except (httpx.HTTPError, httpx.InvalidURL, OfflineModeIsEnabled) as error:
                failures = 1 if arrived() > most else failures + 1
                most = max(most, arrived())
                pause = _pause_s(error, failures)
                if pause is None or pause > LONGEST_WAIT_S or failures == ATTEMPTS or _rest(self.stop, pause):
                    raise self._explain(error, file=file, pause=pause) from error

    def _explain(self, error: Exception, *, file: RemoteFile | None, pause: float | None) -> VinoflowError:
        what = f"{file.name} of {self}" if file else str(self)
        response: httpx.Response | None = getattr(error, "response", None)
        if response is None:
            said = secrecy.without_secrets(str(error))
            return SourceUnreachableError(
                f"{self.endpoint} cannot be reached for {what} ({type(error).__name__}: {said}); check the network, "
                "HF_ENDPOINT and proxies, and run again: what is there is kept"
            )
        status, code = response.status_code, response.headers.get("X-Error-Code")
        page = f"{self.endpoint}/{self.repository}"
        token = "the token in use does not open it" if self.token else "no token is set"
        kind: type[VinoflowError] = SourceError
        text = f"the hub answers {status}: check source.repository and HF_ENDPOINT"
        if code == "GatedRepo":
            kind = SourceAccessError
            text = f"it is gated, and {token}: accept its terms at {page} and set HF_TOKEN to a token of that account"
        elif status in (401, 403):
            kind = SourceAccessError
            text = (
                f"it is private, gated or missing (status {status}), and {token}: open {page}, accept its terms where "
            )
            text += "it has any, and set HF_TOKEN to a token of an account that may read it"
        elif code == "RevisionNotFound":
            kind, text = SourceNotFoundError, f"no such branch, tag or commit: {page}/tree/main lists them"
        elif status == 404:
            text = "no such file" if file else "no such repository, or a private one: check its name, or set HF_TOKEN"
            kind = SourceNotFoundError
        elif status == 416 and file:
            kind, text = IntegrityError, f"it is shorter than the {file.size_bytes} bytes that the hub states"
        elif status == 429:
            kind, text = SourceUnreachableError, f"the hub limits requests: wait {pause or 0:.0f} s and run again"
            text += "" if self.token else ", or set HF_TOKEN for a higher limit"
        elif status >= 500:
            kind, text = SourceUnreachableError, f"the hub answered {status} {ATTEMPTS} times: run again later"
        return kind(f"{what}: {text}")


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _rest(stop: threading.Event, seconds: float) -> bool:
    """Wait; return True where the download was stopped meanwhile."""
    return stop.wait(seconds)


def _pause_s(error: Exception, failures: int) -> float | None:
    """Return the seconds to wait before asking again; None: asking again cannot help."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    usual = BACKOFF_S * 2.0 ** (failures - 1)
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in (408, 429) and error.response.status_code < 500:
            return None
        return _asked_pause_s(error.response) or usual
    if not isinstance(error, httpx.TransportError) or isinstance(error, httpx.UnsupportedProtocol):
        return None
    return usual


def _asked_pause_s(response: httpx.Response) -> float | None:
    """Return the seconds that the hub asks to wait, from Retry-After or, as the hub itself says it, RateLimit."""
    asked: str = response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        limit = re.search(r";\s*t\s*=\s*(\d+)", response.headers.get("RateLimit", ""))
        return float(limit.group(1)) if limit else None
