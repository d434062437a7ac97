"""A server that is down, slow or ill: a proxy before a real one, whose behaviour a test switches."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tests.servers import free_port

# down: nobody listens; slow: it listens and never answers; errors: it answers 500; lost: the server does what it is
# asked, and its answer does not arrive
Kind = Literal["down", "slow", "errors", "lost"]
_AN_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\nConnection: close\r\n\r\nfault"


@dataclass
class Fault:
    """What befalls requests: those that match so many times, or all from the first of them on."""

    kind: Kind
    match: str
    after: int
    times: int | None
    hits: int = 0

    def strikes(self, request: str) -> bool:
        """Count a request; return whether it is one that is struck."""
        if self.times is None and self.hits > self.after:
            return True
        if not re.search(self.match, request):
            return False
        self.hits += 1
        return self.after < self.hits <= self.after + (self.times or 1)


class Proxy:
    """Stands before an HTTP server, at an address of its own that stays."""

    def __init__(self, upstream: str) -> None:
        """Take the URL of the server."""
        parts = urlsplit(upstream)
        self.port = free_port()
        self.url = parts._replace(netloc=f"127.0.0.1:{self.port}").geturl()
        self.requests: list[str] = []  # `METHOD /path`, as they came
        self.struck = 0  # how often the present fault, or the last one, befell something
        self._upstream = (str(parts.hostname), parts.port or 80)
        self._fault: Fault | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()

    def breaks(self, kind: Kind, *, match: str = "", after: int = 0, times: int | None = None) -> None:
        """Have a fault from now on, or from a request on.

        Args:
            kind: What befalls.
            match: A pattern of `METHOD /path`; a server that goes down does so with the first such request.
            after: So many requests of the pattern are answered before.
            times: So many requests of the pattern are struck; by default all requests from the first of them on.
        """
        self._fault, self.struck = Fault(kind, match, after, times), 0
        if kind == "down" and not match:
            self.struck = 1
            self._do(self._stop())

    def is_well(self) -> None:
        """Have all well from now on; what hangs is cut off."""
        self._fault = None
        self._do(self._hang_up())
        self._do(self._listen())

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        """Listen until the block ends."""
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            self._do(self._listen())
            yield self
        finally:
            self._do(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def _do(self, what: object) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=30)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._hang_up()

    async def _hang_up(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        while self._open:
            await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one request; the connection ends with its answer, so that the next one is seen too."""
        self._open.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = " ".join(head.split(b"\r\n", 1)[0].decode().split()[:2])
        self.requests.append(request)
        kind = self._fault.kind if self._fault and self._fault.strikes(request) else None
        self.struck += kind is not None
        if kind == "down":
            self._open.discard(writer)
            writer.transport.abort()
            await self._stop()
        elif kind == "slow":
            while await reader.read(1 << 16):
                pass
        elif kind == "errors":
            await self._swallow(head, reader, writer)
            writer.write(_AN_ERROR)
            await writer.drain()
        else:
            await self._forward(head, reader, writer, deaf=kind == "lost")

    async def _swallow(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a request's body in: who still sends does not read."""
        if b"100-continue" in head.lower():
            return
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        if length:
            await reader.readexactly(int(length[1]))
        elif re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
            await reader.readuntil(b"0\r\n\r\n")

    async def _forward(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, deaf: bool
    ) -> None:
        """Hand a request on, and its answer back, or into the void."""
        theirs, ours = await asyncio.open_connection(*self._upstream)
        self._open.add(ours)
        if not re.search(rb"\r\nupgrade:", head, re.IGNORECASE):
            head = re.sub(rb"\r\nconnection: [^\r]*", b"", head, flags=re.IGNORECASE)
            head = head[:-2] + b"Connection: close\r\n\r\n"
        ours.write(head)
        there = asyncio.create_task(_pour(reader, ours, end=True))
        try:
            await _pour(theirs, None if deaf else writer)
        finally:
            there.cancel()
            self._open.discard(ours)
            ours.close()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None, *, end: bool = False) -> None:
    with suppress(OSError):
        while block := await reader.read(1 << 16):
            if writer is not None:
                writer.write(block)
                await writer.drain()
        if end and writer is not None:
            writer.write_eof()
