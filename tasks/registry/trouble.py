"""An MLflow server, or the store of its files, that is down, slow or ill: when to give up, and what to say."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
RETRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
PATIENCE = {
    RETRIES: "3",  # some 15 s: a server that starts anew takes 8 s; its own default of 7 waits for minutes
    # past the server, straight to its store: parts of files with tries of their own for minutes, or without an end
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    TIMEOUT: "20",  # s without a byte; its own default of 120, four times over, is 8 minutes
}
_BYTES_PER_S = 5_000_000  # at which a server at least moves a file to or from its own store, before it says a word
# boto3 tries a download 5 times what its client tries
_S3 = {"connect_timeout": 5, "read_timeout": 10, "retries": {"total_max_attempts": 2, "mode": "standard"}}
_ENDPOINTS = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REQUEST = "vinoflow.request"  # tag of a run: which request made it
# MLflow puts into one text what went wrong with each file, and forgets the errors
_NOT_FETCHED = re.compile(
    r"failures occurred while downloading.*?\n##### File (?P<file>.*?) #####\n(?P<why>[^\n]*)", re.S
)
_STORES = ("boto3", "botocore", "s3transfer")


def is_server(uri: str) -> bool:
    """Return whether a tracking URI names a server, not a database."""
    return uri.startswith(("http://", "https://"))


def ask(client: MlflowClient) -> None:
    """Ask a server for next to nothing, without patience: one that is down is told before anything is begun."""
    with _set({RETRIES: "1", TIMEOUT: str(min(10, _timeout_s()))}):
        client.search_experiments(max_results=1)


def hurry_databases() -> None:
    """Give up on a database after 6 s: MLflow tries for 102 s, and has no setting for that."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = min(utils.MAX_RETRY_COUNT, 6)


@contextmanager
def time_for(size_bytes: int) -> Iterator[None]:
    """Give a server the time that a file takes: it is silent until its own store has taken it, or handed it over."""
    longer = {TIMEOUT: str(_timeout_s() + size_bytes // _BYTES_PER_S)}
    with _set(longer if os.environ.get(TIMEOUT) == PATIENCE[TIMEOUT] else {}):
        yield


def create_run(client: MlflowClient, experiment: str, *, tags: dict[str, str], **how: Any) -> str:
    """Make one run, and no second one where the answer to the first request gets lost; return its id."""
    mark = uuid.uuid4().hex

    def make() -> str:
        return str(client.create_run(experiment, tags={**tags, _REQUEST: mark}, **how).info.run_id)

    def find() -> str | None:
        found = client.search_runs([experiment], f"tags.`{_REQUEST}` = '{mark}'")
        return str(found[0].info.run_id) if found else None

    return surely(make, find)


def surely(make: Callable[[], T], find: Callable[[], T | None]) -> T:
    """Make what must not be made twice.

    MLflow's client sends a request again when no answer comes, although the first one may have arrived. Here it is
    sent once, and what it makes is looked for before it is sent again.

    Args:
        make: Sends the request.
        find: Returns what it made, none where it made nothing.
    """
    for attempt in range(_tries()):
        try:
            with _set({RETRIES: "0"}):
                return make()
        except Exception as error:
            if not _is_unanswered(error):
                raise
            if (made := find()) is not None:
                return made
            if attempt == _tries() - 1:
                raise
            time.sleep(2.0**attempt)
    raise AssertionError("there is at least one try")


def ready(uri: str) -> str:
    """Have boto3 give up on an S3 that says nothing, where files lie there; its own defaults wait for 5 minutes.

    Returns the URI. What the user has set (AWS_MAX_ATTEMPTS, a session) stays.
    """
    if not uri.startswith("s3:"):
        return uri
    import boto3
    import botocore.session
    from botocore.config import Config

    if boto3.DEFAULT_SESSION is None:
        session = botocore.session.get_session()
        chosen = "AWS_MAX_ATTEMPTS" in os.environ or "AWS_RETRY_MODE" in os.environ
        session.set_default_client_config(
            Config(**{name: value for name, value in _S3.items() if name != "retries" or not chosen})
        )
        boto3.setup_default_session(botocore_session=session)
    return uri


def is_of_a_store(error: BaseException) -> bool:
    """Return whether an error is an S3 client's, which shares no base with any other."""
    return type(error).__module__.partition(".")[0] in _STORES


def in_words(error: BaseException, uri: str) -> str:
    """Return what is the matter with a server or a store, and what to do; empty: it gave an answer like any other.

    Args:
        error: What was raised.
        uri: The server's.
    """
    if found := _NOT_FETCHED.search(str(error)):
        return f"{found['file']} cannot be fetched ({found['why']}): see that {uri} and its store run, then run again"
    for one in _chain(error):
        if is_of_a_store(one):
            at = next((f" at {os.environ[name]}" for name in _ENDPOINTS if os.environ.get(name)), "")
            return f"the store of MLflow's files{at} fails ({_line(one)}): see that it runs, then run again"
        if what := _what(one):
            return f"the MLflow server at {uri} {what}: {_way_out(what, one)}, then run again; what is done is kept"
    return ""


def _way_out(what: str, error: BaseException) -> str:
    if "in time" in what:
        return f"see what holds it up ({TIMEOUT}, {_timeout_s()} s, is how long it may say nothing)"
    if not what.startswith("answers"):
        return "see that it runs and that MLFLOW_TRACKING_URI is right"
    asked = str(getattr(error, "url", "") or getattr(getattr(error, "request", None), "url", ""))
    hint = "; mostly the store of its files is down or full" if "artifacts" in asked else ""
    return f"its log says why{hint}"


def _what(error: BaseException) -> str:
    """Return what an error of urllib3 or requests says that a server did; empty: it is none, or not the reason."""
    from requests.exceptions import HTTPError
    from urllib3 import exceptions as of

    if isinstance(error, HTTPError) and error.response is not None and error.response.status_code >= 500:
        return f"answers {error.response.status_code}"
    reason = error.reason if isinstance(error, of.MaxRetryError) else error
    said: dict[type[Exception], str] = {  # the first that fits
        of.ResponseError: f"answers {_status(str(reason)) or 'errors'}",
        of.NameResolutionError: "has no address: its name is not known",
        of.NewConnectionError: "does not answer (connection refused)"
        if "refused" in str(reason)
        else "cannot be reached",
        of.TimeoutError: "said nothing in time",
        of.ProtocolError: "broke the connection off",
    }
    return next((words for kind, words in said.items() if isinstance(reason, kind)), "")


def _status(text: str) -> str:
    found = re.search(r"\b5\d\d\b", text)
    return found[0] if found else ""


def _is_unanswered(error: BaseException) -> bool:
    return any(_what(one) for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _timeout_s() -> int:
    return int(os.environ.get(TIMEOUT) or PATIENCE[TIMEOUT])


def _tries() -> int:
    return 1 + int(os.environ.get(RETRIES) or PATIENCE[RETRIES])


@contextmanager
def _set(values: dict[str, str]) -> Iterator[None]:
    """Set variables that MLflow reads at each request."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
