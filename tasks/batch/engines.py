"""The engines of this process: loaded for the first range of rows, kept for the next, ended when no more come."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tasks import devices, progress
from tasks.batch.job import Job
from tasks.batch.lasting import Key, LastingEngine
from tasks.batch.team import Team
from tasks.config import Batch
from tasks.engine import Engine, GrammarCheck, Request, Whole
from tasks.errors import EngineError, IntegrityError
from tasks.registry import PulledModel, pull, recipe_of, report_of
from tasks.serving.smoke import judge
from tasks.validate import EXACT, reference_requests

_IDLE_S = 60.0
_LIBRARIES_BYTES = 500_000_000
_TOKENS_A_ROW = 512  # of prompt and answer, reckoned before any row is read


class Loaded:
    """A version with its engines."""

    def __init__(self, job: Job, threads: int | None) -> None:
        """Pull the version, check its files, load it, and have it answer its reference prompts.

        Args:
            job: The batch.
            threads: Of all engines together; none: as many as there are cores.

        Raises:
            IntegrityError: Its files, or those of its report, are not what the batch was begun with.
            DeviceError: OpenVINO refuses the model on this device.
            EngineError: It does not answer as when it was validated.
        """
        self.of = _what(job, threads)
        self.model: PulledModel = pull(job.version)
        if self.model.version.digest != job.digest:
            raise IntegrityError(
                f"{job.version} has digest {self.model.version.digest[:12]}, the batch was begun with {job.digest[:12]}"
            )
        self.grammars = GrammarCheck(self.model.path)
        self._job = job
        self._config: dict[str, str] = json.loads(self.model.version.tags["vinoflow.ov_config"])
        if job.settings.exact:
            self._config |= EXACT
        threads = threads or devices.cores()
        count = job.settings.engines or _count(job, self.model.path, threads)
        if job.device == "CPU":
            self._config["INFERENCE_NUM_THREADS"] = str(max(1, threads // count))
            self._config["ENABLE_CPU_PINNING"] = "NO"  # or every process takes the same cores, the first ones
        self._engines = [LastingEngine(self._load) for _ in range(count)]
        try:
            with progress.step("load") as step:
                step.update(note=f"{job.version} on {job.device}, {count} engine{'s' if count > 1 else ''}")
                self._engines[0].load()
            self._try()
        except BaseException:
            self.close()
            raise

    def answers(self, requests: Iterable[tuple[Key, Request]]) -> Generator[tuple[Key, Whole | EngineError]]:
        """Answer requests, and yield each with its key as it is done, an error where there is no answer.

        Raises:
            EngineError: Engines die again and again, and answer nothing.
        """
        return Team(self._engines, window=self._job.settings.window).answers(requests)

    def close(self) -> None:
        """End the engines."""
        for engine in self._engines:
            engine.close()
        self.grammars.close()

    def _load(self) -> Engine:
        settings = self._job.settings
        return Engine(
            self.model.path, device=self._job.device, ov_config=self._config, kv_cache_gb=settings.kv_cache_gb
        )

    def _try(self) -> None:
        version = self.model.version
        recipe, report = recipe_of(version), report_of(version)
        with progress.step("smoke test") as step:
            step.update(note=f"{len(recipe.validation.prompts)} prompts")
            requests = reference_requests(recipe.validation)
            answers = dict(self._engines[0].load().stream(enumerate(requests), window=len(requests)))
        wholes = [answers[place] for place in range(len(requests))]
        failed = next((one for one in wholes if isinstance(one, EngineError)), None)
        problem = (
            str(failed) if failed else judge([one.answer for one in wholes if isinstance(one, Whole)], recipe, report)
        )
        if problem:
            raise EngineError(f"{version.reference} does not answer as when it was validated: {problem}")


def _count(job: Job, folder: Path, threads: int) -> int:
    """Return how many engines are best: on a CPU one a core, as far as rows and half of the free memory suffice.

    Threads of one engine wait for each other at every layer; engines do not.
    """
    if job.device != "CPU":
        return 1
    rows = job.rows // job.settings.window
    room = psutil.virtual_memory().available / 2 / _memory(folder, job.settings)
    return max(1, min(threads, rows, int(room)))


def _memory(folder: Path, settings: Batch) -> float:
    """Return about how many bytes an engine takes.

    Weights are there as they lie on the disk and in the form that is computed with; keys and values have a byte each,
    in exact mode four.
    """
    config = json.loads((folder / "config.json").read_bytes())
    cache = settings.kv_cache_gb * 1e9
    if not cache:
        heads = config.get("num_attention_heads", 32)
        width = config.get("head_dim") or config.get("hidden_size", 4096) // heads
        layers, groups = config.get("num_hidden_layers", 32), config.get("num_key_value_heads") or heads
        cache = 2 * layers * groups * width * (4 if settings.exact else 1) * settings.window * _TOKENS_A_ROW
    return _LIBRARIES_BYTES + 3 * (folder / "openvino_model.bin").stat().st_size + cache


_lock = threading.Lock()  # one range at a time
_kept: Loaded | None = None
_idle: threading.Timer | None = None


@contextmanager
def loaded(job: Job, *, threads: int | None) -> Iterator[Loaded]:
    """Hold this process's engines, loaded with a job's version; another range of this process waits."""
    global _kept, _idle  # noqa: PLW0603 - one version a process is the point
    with _lock:
        if _idle is not None:
            _idle.cancel()
        if _kept is not None and _kept.of != _what(job, threads):
            _kept.close()
            _kept = None
        _kept = _kept or Loaded(job, threads)
        try:
            yield _kept
        except BaseException:
            _kept.close()
            _kept = None
            raise
        _idle = threading.Timer(_IDLE_S, release)
        _idle.daemon = True
        _idle.start()


def release() -> None:
    """End this process's engines, if it has some."""
    global _kept  # noqa: PLW0603
    with _lock:
        if _kept is not None:
            _kept.close()
            _kept = None


def _what(job: Job, threads: int | None) -> tuple[object, ...]:
    settings = job.settings
    return (
        *(job.version, job.digest, job.device, job.rows, threads),
        *(settings.exact, settings.kv_cache_gb, settings.window, settings.engines),
    )
