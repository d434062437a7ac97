"""Nothing that strangers send stops the server: no 5xx, no crash, no memory that stays."""

from __future__ import annotations

import hashlib
import json
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.serving import Served, home_of, serving
from tests.tasks.serving.hostile import CHAT, HOSTILE, TEXT, VALID, asked, http

LIMIT = 4_000_000  # bytes of a body, as the settings say
GROWTH = 32 << 20  # bytes: arenas of Python that it keeps, not what was sent
STATUSES = {200, 400, 401, 404, 405, 408, 413, 415, 429}
BODY = json.dumps(VALID[CHAT]).encode()
STREAM = json.dumps({**VALID[CHAT], "max_tokens": 200, "n": 4, "stream": True}).encode()
HEAD = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
KEY = "correct horse"
JSON = {"content-type": "application/json"}


class Reply(NamedTuple):
    """What came back; status 0: nothing did."""

    status: int
    headers: dict[str, str]
    body: bytes


@contextmanager
def connected(server: Served, *, window: int | None = None) -> Iterator[socket.socket]:
    """Connect; `window`: the bytes that the system takes in for a reader that does not read."""
    address = urlsplit(server.url)
    with socket.socket() as connection:
        connection.settimeout(60)
        if window:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        connection.connect((address.hostname, address.port))
        yield connection


def read(connection: socket.socket) -> Reply:
    """Return what the server says until it closes."""
    came = b""
    try:
        while part := connection.recv(1 << 16):
            came += part
    except ConnectionResetError:
        pass
    came = came.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, _, body = came.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Reply(int(first.split()[1]) if first else 0, headers, body)


def send(server: Served, *parts: bytes) -> Reply:
    with connected(server) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough
        return read(connection)


def well(reply: Reply, *, head: bool = False) -> Reply:
    """Return the reply, which is one that the document tells of."""
    assert reply.status in STATUSES, reply
    if reply.status != 200 and not head:
        assert reply.headers["content-type"] == "application/json", reply
        error = json.loads(reply.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, reply
        assert error["message"] and error["type"].endswith("_error"), reply
        assert "Traceback" not in error["message"], reply
    return reply


def answers(server: Served, **headers: str) -> None:
    """Assert that it answers as ever, with the engine that it began with."""
    reply = httpx.post(server.url + CHAT, json=VALID[CHAT], headers=headers, timeout=60)
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] > 0
    ready = httpx.get(f"{server.url}/health/ready", timeout=30).json()
    assert ready["ready"] and ready["restarts"] == 0, ready


def idle(server: Served) -> None:
    """Wait until all that was sent is done or dropped."""
    deadline = time.monotonic() + 60
    while (ready := httpx.get(f"{server.url}/health/ready", timeout=30).json())["running"] or ready["waiting"]:
        assert time.monotonic() < deadline, ready
        time.sleep(0.05)


def memory(server: Served) -> int:
    """Return the bytes that the server's own process holds."""
    return psutil.Process(server.process.pid).memory_info().rss


@pytest.fixture(scope="module")
def server(tiny_served: Served) -> Iterator[Served]:
    """It answers after all of this as before, in no more memory."""
    for kind in ("texts", "prompts"):  # what is loaded and cached at first
        for data in HOSTILE[kind]:
            send(tiny_served, data)
    before = memory(tiny_served)
    yield tiny_served
    idle(tiny_served)
    answers(tiny_served)
    assert memory(tiny_served) - before < GROWTH
    log = tiny_served.log.read_text()
    assert "a bug came up" not in log and "Traceback" not in log, log[-5000:]


@pytest.fixture(scope="module")
def strict(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that has little patience, few places, and a key."""
    settings = {
        "body_timeout_s": 0.5,
        "deadline_s": 3,
        "max_running": 4,
        "max_waiting": 4,
        "api_keys": {"ann": hashlib.sha256(KEY.encode()).hexdigest()},
    }
    with home_of(tiny_home), serving("tiny@champion", tmp_path_factory.mktemp("strict"), **settings) as server:
        yield server
        idle(server)
        answers(server, authorization=f"Bearer {KEY}")
        assert "Traceback" not in server.log.read_text()


def test_there_are_500() -> None:
    assert sum(map(len, HOSTILE.values())) > 500


@pytest.mark.parametrize("kind", HOSTILE)
def test_each_is_answered_as_documented(server: Served, kind: str) -> None:
    for data in HOSTILE[kind]:
        reply = well(send(server, data))
        assert kind != "broken" or reply.status in {200, 400, 404, 415}
    answers(server)


@pytest.mark.parametrize("path", ["/v1/models", "/health/ready", "/nothing", CHAT])
def test_head_has_no_body(server: Served, path: str) -> None:
    reply = well(send(server, http(path, method="HEAD")), head=True)
    assert reply.status in {404, 405} and not reply.body


def test_an_error_names_its_method_and_id(server: Served) -> None:
    reply = well(send(server, http("/v1/models", method="PUT", headers=(b"X-Request-Id: my-id",))))
    assert (reply.status, reply.headers["allow"], reply.headers["x-request-id"]) == (405, "GET", "my-id")
    for forged in (b"a b", b"a" * 101, b"<script>", b"\xff"):
        reply = well(send(server, http("/v1/models", method="GET", headers=(b"X-Request-Id: " + forged,))))
        assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["x-request-id"])


def test_a_slash_too_many_is_not_redirected(server: Served) -> None:
    assert well(send(server, http(CHAT + "/", BODY))).status == 404


def test_paths_that_are_made_up_are_one_series(server: Served) -> None:
    for number in range(50):
        send(server, http(f"/made-up-{number}/x", method="GET"))
    metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    assert "made" not in metrics
    assert len(re.findall(r"(?m)^vinoflow_requests_total", metrics)) < 60


def test_a_large_body_is_refused_before_it_is_read(server: Served) -> None:
    reply = well(send(server, HEAD + b"Content-Length: 5000000000\r\n\r\n{"))
    assert reply.status == 413
    reply = well(send(server, HEAD + b"Content-Length: 5000000\r\n\r\n", b" " * 5_000_000))
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    assert httpx.post(server.url + TEXT, content=b" " * 20_000_000, headers=JSON, timeout=30).status_code == 413
    for size in (LIMIT - 10, LIMIT):  # a body of just that size is read
        body = BODY[:-1] + b" " * (size - len(BODY)) + b"}"
        assert well(send(server, http(CHAT, body))).status == 200


def test_a_body_in_chunks_is_refused_at_its_limit(server: Served) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        part, sent = b"%x\r\n" % (1 << 16) + b" " * (1 << 16) + b"\r\n", 0
        try:
            while sent < 1 << 30 and not select.select([connection], [], [], 0)[0]:
                connection.sendall(part)
                sent += len(part)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert LIMIT < sent < 1 << 28
        assert well(read(connection)).status == 413


@pytest.mark.parametrize("place", range(0, len(HEAD) + len(BODY) + 30, 16))
def test_a_connection_that_is_cut_in_a_request(server: Served, place: int) -> None:
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    for data in (whole, whole.replace(BODY, STREAM[: len(BODY)])):
        with connected(server) as connection:
            connection.sendall(data[:place])


def test_streams_that_are_cut_free_their_places(server: Served) -> None:
    for pieces in range(20):
        with connected(server) as connection:
            connection.sendall(http(CHAT, STREAM))
            for _ in range(pieces):
                connection.recv(97)
    idle(server)
    answers(server)


def test_streams_that_nobody_reads(server: Served) -> None:
    with ExitStack() as readers:
        for _ in range(12):
            connection = readers.enter_context(connected(server, window=1024))
            connection.sendall(http(CHAT, STREAM))
        answers(server)
    idle(server)


def test_hundreds_of_idle_connections(server: Served) -> None:
    with ExitStack() as crowd:
        for number in range(400):
            connection = crowd.enter_context(connected(server))
            connection.sendall((b"", b"G", HEAD, HEAD + b"Content-Length: 9\r\n\r\n{")[number % 4])
        answers(server)
    answers(server)


def test_requests_in_one_breath(server: Served) -> None:
    """Pipelined: the answers come in order, and what is broken ends them."""
    many = http("/health/live", method="GET").replace(b"Connection: close\r\n", b"") * 50
    with connected(server) as connection:
        connection.sendall(many + b"\x00\r\n\r\n")
        came = b""
        while part := connection.recv(1 << 16):
            came += part
    assert came.count(b"HTTP/1.1 200 OK") == 50 and came.count(b"HTTP/1.1 400") == 1


def test_a_token_that_there_is_not_is_named(server: Served) -> None:
    reply = well(send(server, asked(TEXT, prompt=[5, 123_456_789])))
    assert reply.status == 400 and b"token 123456789" in reply.body


def test_a_temperature_of_almost_nothing_is_the_likeliest_token(server: Served) -> None:
    def text(**settings: object) -> str:
        return str(json.loads(send(server, asked(TEXT, **settings)).body)["choices"][0]["text"])

    assert text(temperature=1e-45, max_tokens=20) == text(temperature=0, max_tokens=20)


def test_a_template_in_a_message_is_text(server: Served) -> None:
    def tokens(text: str) -> int:
        reply = send(server, asked(messages=[{"role": "user", "content": text}]))
        return int(json.loads(reply.body)["usage"]["prompt_tokens"])

    assert tokens("{{ 7*7 }}") > tokens("49")


def test_slow_schemas_hold_up_nobody_else(server: Served) -> None:
    """Each of them takes the checking process seconds; known ones and requests without one pass by."""
    known = {"type": "json_object"}
    assert well(send(server, asked(response_format=known))).status == 200
    with ExitStack() as crowd:
        for number in range(8):
            pattern = f"^(((([a-z]{{50}}){{50}}){{50}}){{{50 + number}}})$"
            schema = {"name": "x", "schema": {"type": "string", "pattern": pattern}}
            connection = crowd.enter_context(connected(server))
            connection.sendall(asked(response_format={"type": "json_schema", "json_schema": schema}))
        late = crowd.enter_context(connected(server))
        late.sendall(asked(response_format={"type": "json_schema", "json_schema": {**schema, "schema": {"enum": [1]}}}))
        for request in (asked(), asked(response_format=known), asked(TEXT)):
            assert well(send(server, request)).status == 200
        assert not select.select([late], [], [], 0)[0]  # it waits behind them


def test_slow_headers_and_slow_bodies_are_cut(strict: Served) -> None:
    bearer = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
    for begun in (b"", b"G", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
        with connected(strict) as connection:
            connection.sendall(begun)
            assert read(connection).status == 0
    with connected(strict) as connection:  # a header each moment, without end
        drip(connection, HEAD, b"A: b\r\n")
    with connected(strict) as connection:
        drip(connection, HEAD + bearer + b"Content-Length: 1000000\r\n\r\n", b" ")
        assert well(read(connection)).status == 408
    with connected(strict) as connection:
        drip(connection, HEAD + bearer + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")
        assert well(read(connection)).status == 408


def drip(connection: socket.socket, begin: bytes, drop: bytes) -> None:
    """Send a drop at a time until the server says something, or closes."""
    connection.sendall(begin)
    deadline = time.monotonic() + 60
    while not select.select([connection], [], [], 0.05)[0]:
        assert time.monotonic() < deadline, "it listens for ever"
        connection.sendall(drop)


def test_readers_that_do_not_read_hold_up_nobody(strict: Served) -> None:
    bearer = b"Authorization: Bearer " + KEY.encode()
    body = json.dumps({**VALID[CHAT], "max_tokens": 240, "stream": True, "logprobs": True}).encode()
    with ExitStack() as readers:
        for _ in range(20):
            connection = readers.enter_context(connected(strict, window=1024))
            connection.sendall(http(CHAT, body, headers=(bearer,)))
        idle(strict)  # while none of them has gone


def test_more_than_can_wait_are_told_when_to_come_again(strict: Served) -> None:
    bearer = b"Authorization: Bearer " + KEY.encode()
    with ExitStack() as crowd:
        connections = [crowd.enter_context(connected(strict)) for _ in range(24)]
        for connection in connections:
            connection.sendall(http(CHAT, STREAM.replace(b'"stream": true', b'"stream": false'), headers=(bearer,)))
        replies = [well(read(connection)) for connection in connections]
    turned = [reply for reply in replies if reply.status == 429]
    assert turned and all(int(reply.headers["retry-after"]) > 0 for reply in turned)


@pytest.mark.parametrize(
    "key",
    [b"", b"Bearer", b"Bearer  ", b"Bearer wrong", b"Bearer " + b"a" * 20_000, b"Basic " + KEY.encode(), b"\xff\xfe"],
)
def test_a_wrong_key_opens_nothing(strict: Served, key: bytes) -> None:
    for request in (
        http(CHAT, BODY, headers=(b"Authorization: " + key,)),
        http("/v1/models", method="GET", headers=(b"Authorization: " + key,)),
        http("/page/../v1/models", method="GET", headers=(b"Authorization: " + key,)),
        http(
            "/nothing", method="GET", headers=(b"Authorization: " + key, b"Upgrade: websocket", b"Connection: Upgrade")
        ),
    ):
        reply = well(send(strict, request))
        assert reply.status in {401, 404} and KEY.encode() not in reply.body
    assert well(send(strict, http(CHAT, BODY))).status == 401
