"""The server's life: load, listen, follow the alias, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from tasks.config import Serving
from tasks.errors import EngineError, ServingError
from tasks.records import Record
from tasks.serving.admission import Admission
from tasks.serving.app import application
from tasks.serving.connection import within
from tasks.serving.follower import Follower
from tasks.serving.guard import Guard
from tasks.serving.observe import Observer
from tasks.serving.service import Service

_LAST_WORDS_S = 5  # after the drain: for the errors of what was given up to be read


class Listening(Record):
    """What is served, and where."""

    url: str
    reference: str
    version: str
    digest: str
    device: str


class _Server(uvicorn.Server):
    """Uvicorn's server that ends as a program does, not by the signal once more."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Drain at the first signal; at a second Ctrl-C, end at once."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._on_exit()


def serve(reference: str, settings: Serving, *, on_ready: Callable[[Listening], None]) -> None:
    """Serve what a reference names until SIGTERM or Ctrl-C; then let requests end for `drain_s` seconds.

    Args:
        reference: NAME/VERSION, or NAME@ALIAS or NAME@latest, which is followed.
        settings: How.
        on_ready: Is called when requests are answered.

    Raises:
        ServingError: The address is not free, or the certificate cannot be read.
        VinoflowError: The version cannot be found, is damaged, or does not answer as when it was validated.
    """
    with _bound(settings) as listener:
        asyncio.run(_serve(reference, settings, listener, on_ready))


async def _serve(
    reference: str, settings: Serving, listener: socket.socket, on_ready: Callable[[Listening], None]
) -> None:
    observer = Observer(log_prompts=settings.log_prompts, trace_share=settings.trace_share)
    follower = Follower(reference, settings, on_swap=lambda result: observer.swaps.labels(result).inc())
    admission = Admission(running=settings.max_running, waiting=settings.max_waiting)
    service = Service(follower, observer, admission, deadline_s=settings.deadline_s)
    guarded = Guard(
        application(service),
        settings=settings,
        observer=observer,
        served=lambda: follower.current.version if follower.current else None,
    )
    try:
        config = uvicorn.Config(
            guarded,
            http=within(settings.body_timeout_s),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",  # an upgrade would go around the guard
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
            timeout_graceful_shutdown=int(settings.drain_s) + _LAST_WORDS_S,
        )
        config.load()
    except OSError as error:
        raise ServingError(f"{settings.ssl_certfile} and {settings.ssl_keyfile} cannot be used: {error}") from error
    loop = asyncio.get_running_loop()

    def drained() -> None:
        admission.close()
        follower.fail_all(EngineError("the server is shutting down: send the request again"))

    def draining() -> None:
        loop.call_soon_threadsafe(loop.call_later, settings.drain_s, drained)

    server = _Server(config, draining)
    await follower.start()
    following = asyncio.create_task(follower.follow())
    announced = asyncio.create_task(_announce(server, follower, settings, listener, on_ready))
    try:
        await server.serve([listener])
    finally:
        for task in (following, announced):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await follower.close()


async def _announce(
    server: _Server,
    follower: Follower,
    settings: Serving,
    listener: socket.socket,
    on_ready: Callable[[Listening], None],
) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    replica = await follower.replica()
    gc.collect()
    gc.freeze()  # what was imported stays: MLflow's objects are 0.4 s of every full collection
    scheme = "https" if settings.ssl_certfile else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    on_ready(
        Listening(
            url=f"{scheme}://{host}:{listener.getsockname()[1]}",
            reference=follower.reference,
            version=replica.version.reference,
            digest=replica.version.digest,
            device=replica.device,
        )
    )


def _bound(settings: Serving) -> socket.socket:
    """Return a socket with the server's address, which does not listen yet.

    Raises:
        ServingError: Another process has it, or it is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ServingError(
            f"host {settings.host}, port {settings.port} cannot be listened on: {error}; choose another --port (0: any)"
        ) from error
    return listener
