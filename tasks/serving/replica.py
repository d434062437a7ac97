"""A version with its engine, which is loaded anew when its process ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tasks.config import Serving
from tasks.engine import AsyncEngine, GrammarCheck, Group, Request
from tasks.errors import VinoflowError
from tasks.records import ModelVersion
from tasks.registry import PulledModel
from tasks.serving.translate import Habits, habits_of

_log = logging.getLogger(__name__)
_AGAIN_S, _AGAIN_MOST_S = 0.5, 30.0


class Replica:
    """A version that is loaded, and stays so until it is closed."""

    def __init__(self, model: PulledModel, settings: Serving) -> None:
        """Take a version whose files were checked."""
        self.version: ModelVersion = model.version
        self.path: Path = model.path
        self.device: str = settings.device or model.version.tags["vinoflow.device"]
        self.habits: Habits = habits_of(model.path)
        self.grammars = GrammarCheck(model.path)
        self.state: Literal["loading", "ready", "restarting", "stopped"] = "loading"
        self.restarts = 0
        self.in_flight = 0
        self._settings = settings
        self._engine: AsyncEngine | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def fingerprint(self) -> str:
        """What `system_fingerprint` says."""
        return self.version.fingerprint

    @property
    def answers(self) -> bool:
        """Whether requests are answered now."""
        return self.state == "ready" and not self.engine.ended.done()

    @property
    def engine(self) -> AsyncEngine:
        """The engine that answers, or answered last."""
        if self._engine is None:
            raise RuntimeError(f"{self.version.reference} is not loaded")
        return self._engine

    async def start(self) -> None:
        """Load the engine, and watch over it from then on.

        Raises:
            DeviceError: OpenVINO refuses the model on this device.
            EngineError: The process crashed while it loaded.
        """
        await self._load()
        self._watch = asyncio.create_task(self._restart_when_it_ends())

    def submit(self, requests: Sequence[Request], *, streams: bool) -> Group:
        """Send requests to the engine."""
        return self.engine.submit(requests, streams=streams)

    async def close(self) -> None:
        """End the engine; what is under way fails."""
        self.state = "stopped"
        if self._watch is not None:
            self._watch.cancel()
        if self._engine is not None:
            await self._engine.close()
        await asyncio.to_thread(self.grammars.close)

    async def _load(self) -> None:
        self._engine = await AsyncEngine.load(
            self.path,
            device=self.device,
            ov_config=json.loads(self.version.tags["vinoflow.ov_config"]),
            kv_cache_gb=self._settings.kv_cache_gb,
            max_tokens=self._settings.max_request_tokens,
        )
        self.state = "ready"

    async def _restart_when_it_ends(self) -> None:
        while True:
            how = await asyncio.shield(self.engine.ended)
            self.state = "restarting"
            self.restarts += 1
            _log.error("the engine of %s stopped and is loaded again: %s", self.version.reference, how)
            await self.engine.close(grace_s=0)
            wait = _AGAIN_S
            while not self.answers:
                try:
                    await self._load()
                except VinoflowError as error:
                    _log.error("the engine of %s does not start: %s", self.version.reference, error)
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, _AGAIN_MOST_S)
