"""What uvicorn leaves open about connections: headers that never come, and what is no HTTP."""

from __future__ import annotations

import asyncio

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from tasks.serving.problems import ApiError

_ANSWERABLE = {h11.IDLE, h11.SEND_RESPONSE}


class Connection(H11Protocol):
    """A client's connection. Whoever opens one and says nothing would keep it, and a file of ours, for ever."""

    within_s = 30.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request's headers."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the first ones of a request's headers start its clock, the last ones stop it."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._late is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in OpenAI's shape, where an answer has not begun; drop what else was asked."""
        if self.conn.our_state in _ANSWERABLE:
            body = orjson.dumps(ApiError(400, msg, code="invalid_http").body)
            told = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            head = h11.Response(status_code=400, headers=list(told.items()), reason=b"Bad Request")
            for part in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True
        self.transport.close()

    def _wait(self) -> None:
        self._late = self.loop.call_later(self.within_s, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def within(seconds: float) -> type[Connection]:
    """Return the kind of connection whose headers have so long to arrive."""
    return type("Connection", (Connection,), {"within_s": seconds})
