"""What stands before every request: who asks, for which host, how much, how fast; and what every response carries."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import uuid
from collections.abc import Callable
from typing import Any

import orjson

from tasks.config import Serving
from tasks.records import ModelVersion
from tasks.serving.observe import Observer, Seen
from tasks.serving.problems import ApiError, ClientGoneError

Scope = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[dict[str, Any]], Any]
_log = logging.getLogger(__name__)
_OPEN_PATHS = re.compile(r"/|/page/.*|/health/.*")  # a page must load to ask for a key, a load balancer has none
_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
_WITH_BODY = {"/v1/chat/completions", "/v1/completions"}
KNOWN_PATHS = {"/", *_WITH_BODY, "/v1/models", "/health/live", "/health/ready", "/metrics", "/openapi.json"}
_GROUPS = re.compile(r"/(?:v1/models|v1|page|health)/")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self, app: Any, *, settings: Serving, observer: Observer, served: Callable[[], ModelVersion | None]
    ) -> None:
        """Take the application, and what tells which version is served now."""
        self._app = app
        self._settings = settings
        self._observer = observer
        self._served = served
        self._keys = {owner: digest.encode() for owner, digest in settings.api_keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        seen = Seen(given if _ID.fullmatch(given) else uuid.uuid4().hex, scope["method"], _kind(scope["path"]))
        scope.setdefault("state", {})["seen"] = seen

        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                message["headers"] = [*message["headers"], *self._headers(seen)]
            await send(message)

        try:
            seen.client = self._admitted(scope, headers)
            await self._app(scope, await self._body(scope, headers, receive), sending)
        except ClientGoneError:
            seen.gone()
        except ApiError as error:
            seen.failed(error)
            await _answer(error, sending)
        except Exception:  # its answer is sent by now
            _log.exception("a bug came up in request %s", seen.id)
        finally:
            self._observer.ended(seen)

    def _headers(self, seen: Seen) -> list[tuple[bytes, bytes]]:
        version = seen.version or self._served()
        told = {
            "x-request-id": seen.id,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "content-security-policy": POLICY,
            "cache-control": "no-store",
        }
        if version is not None:
            told |= {"x-vinoflow-version": version.reference, "x-vinoflow-digest": version.digest}
        return [(name.encode(), value.encode()) for name, value in told.items()]

    def _admitted(self, scope: Scope, headers: dict[str, str]) -> str:
        """Return the owner of the request's key; empty: none is asked.

        Raises:
            ApiError: The host is not ours (400), or the key opens nothing (401).
        """
        host = re.sub(r":\d+$", "", headers.get("host", "")).strip("[]").lower()
        if self._settings.hosts and host not in self._settings.hosts:
            raise ApiError(400, f"host {host[:100]!r} is not served here: name it in allowed_hosts", code="wrong_host")
        if not self._keys or _OPEN_PATHS.fullmatch(scope["path"]):
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest().encode()
        owners = [owner for owner, known in self._keys.items() if hmac.compare_digest(known, digest)]
        if scheme.lower() != "bearer" or not owners:
            raise ApiError(
                401,
                "a key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return owners[0]

    async def _body(self, scope: Scope, headers: dict[str, str], receive: Receive) -> Receive:
        """Read the body whole, and return what hands it on.

        Raises:
            ApiError: It is too large (413), too slow (408), or not JSON by its type (415).
        """
        if scope["method"] != "POST" or scope["path"] not in _WITH_BODY:
            return receive
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Content-Type must be application/json", param="Content-Type")
        most = self._settings.max_body_bytes
        large = ApiError(413, f"the body has more than {most} bytes, which is the limit", code="body_too_large")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise large
                    more = message.get("more_body", False)
        except TimeoutError as error:
            seconds = self._settings.body_timeout_s
            raise ApiError(408, f"the body did not arrive within {seconds:g} s", code="body_too_slow") from error
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Any:
            return whole.pop() if whole else await receive()

        return replay


def _kind(path: str) -> str:
    """Return a path for log and metrics: what strangers make up must not become a series each."""
    if path in KNOWN_PATHS:
        return path
    group = _GROUPS.match(path)
    return f"{group[0] if group else '/'}..."


async def _answer(error: ApiError, send: Send) -> None:
    body = orjson.dumps(error.body)
    told = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    if error.status in {408, 413}:
        told["connection"] = "close"  # what is left of the body is not read
    headers = [(name.encode(), value.encode()) for name, value in told.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
