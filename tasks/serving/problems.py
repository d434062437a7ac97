"""What a request may be told in place of an answer, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.errors import EngineDiedError, EngineError, RefusedError

CLIENT_GONE = 499  # as nginx logs it
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request is not answered; `status` is HTTP's."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Say what is wrong, in which field, and what to do."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        told = {"message": self.message, "type": TYPES[self.status], "param": self.param, "code": self.code}
        return {"error": told}


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def of_engine(error: EngineError) -> ApiError:
    """Return what a client is told of an engine's error."""
    if isinstance(error, RefusedError):
        long = "context" in str(error) or "tokens" in str(error)
        return ApiError(400, str(error), code="context_length_exceeded" if long else "refused")
    if isinstance(error, EngineDiedError):
        return ApiError(503, "the engine stopped while it answered: send the request again", code="engine_stopped")
    return ApiError(503, str(error), code="engine_failed")


def of_validation(problem: Mapping[str, Any], field: str) -> ApiError:
    """Return what a client is told of the first of pydantic's errors.

    Args:
        problem: Of `ValidationError.errors()`.
        field: Its path as the client wrote it; empty: the whole body.
    """
    name = field or "body"
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"{name} is not supported: leave it out", param=name, code="unsupported_parameter")
    if problem["type"] == "missing":
        return ApiError(400, f"{name} is missing", param=name, code="missing_parameter")
    if problem["type"] == "too_short":
        text = f"has {problem['ctx']['actual_length']} items, at least {problem['ctx']['min_length']} must be given"
    return ApiError(400, f"{field}: {text}" if field else text, param=field or None, code="invalid_value")


def field_of(path: Sequence[Any], body: Any) -> str:
    """Return `messages[0].content`: the path without the kinds that pydantic puts between; empty: the whole body."""
    field = ""
    for place, part in enumerate(path):
        inside = (isinstance(body, dict) and part in body) or (isinstance(body, list) and isinstance(part, int))
        if inside:
            body = body[part]
        elif place < len(path) - 1 or not isinstance(body, dict):
            continue
        name = str(part)[:100]
        field += f"[{name}]" if isinstance(part, int) else f".{name}" if field else name
    return field
