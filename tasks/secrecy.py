"""Secrets stay where they are kept: in the environment, or in Prefect's blocks.

What goes to a terminal or a log passes `without_secrets`. URLs of servers lose their passwords before a library sees
them, so that no error of a library has one.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

_NAMES_SECRET = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|API_KEY|ACCESS_KEY|AUTH_STRING)(_(?!FILE|PATH)|$)")
_SHORTEST = 8  # a shorter one is a word of ordinary text too, and none that keeps anything closed
_USERINFO = re.compile(r"(?<=://)[^\s/?#\"<>]*@")
_PARAMETER = re.compile(
    r"([?&][\w-]*(?:password|passwd|token|secret|signature|credential|api_?key)[\w-]*=|[?&]sig=)[^\s&#'\"<>]+",
    re.IGNORECASE,
)
_make_record = logging.getLogRecordFactory()


def keep() -> None:
    """Keep secrets out of libraries' errors and out of every log of this process. Call before libraries are imported.

    A password in MLFLOW_TRACKING_URI or PREFECT_API_URL moves to the variable that MLflow or Prefect has for it.
    """
    if found := _parted("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = found
    if found := _parted("PREFECT_API_URL"):
        os.environ["PREFECT_API_AUTH_STRING"] = ":".join(found)
    logging.setLogRecordFactory(_record)


def without_secrets(text: str) -> str:
    """Return a text without the passwords of URLs, signed parameters, and values of variables that hold secrets."""
    for secret in _secrets(frozenset(_kept())):
        text = text.replace(secret, "***")
    return _PARAMETER.sub(r"\1***", _USERINFO.sub("", text))


def has_secret(url: str) -> bool:
    """Return whether a URL has a password or a signature in it."""
    userinfo = _USERINFO.search(url)
    return bool((userinfo and ":" in userinfo[0]) or _PARAMETER.search(url))


def _parted(name: str) -> tuple[str, str] | None:
    """Take user and password out of the HTTP URL in a variable, and return them; None: it has none."""
    parts = urlsplit(os.environ.get(name, ""))
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return None
    userinfo, _, host = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    os.environ[name] = urlunsplit(parts._replace(netloc=host))
    return unquote(user), unquote(password)


def _kept() -> Iterator[str]:
    """Yield the secrets in the environment: values of variables by their names, and passwords of URLs."""
    for name, value in os.environ.items():
        if _NAMES_SECRET.search(name) and "://" not in value:
            yield value
            yield from value.split(":")[1:]  # user:password
        if "://" in value and "@" in value:
            yield value.partition("://")[2].rpartition("@")[0].partition(":")[2]


@lru_cache(maxsize=4)
def _secrets(kept: frozenset[str]) -> tuple[str, ...]:
    """Return them as they may be written, the longest first."""
    written = {way for value in kept for way in (value, quote(value, safe=""), unquote(value))}
    return tuple(sorted((way for way in written if len(way) >= _SHORTEST), key=len, reverse=True))


def _record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a log record whose message and traceback have no secret."""
    record = _make_record(*args, **kwargs)
    try:
        said = record.getMessage()
    except Exception:  # arguments that do not fit: logging itself tells
        return record
    clean = without_secrets(said)
    if clean != said:
        record.msg, record.args = clean, None
    if record.exc_info and record.exc_info[0] is not None:
        told = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if (cleaned := without_secrets(told)) != told:
            record.exc_text = cleaned
    return record
