"""A Python child process that speaks JSON lines with its parent over pipes of its own.

Heavy work (export, engines) runs in one: a crash, an out-of-memory kill or a hang becomes an error here, and
its memory goes back when it ends. What the libraries in it print goes to a log, whose end is shown on failure.
The child ends by itself when its parent is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tasks import secrecy, telemetry
from tasks.errors import WorkerError

Message = dict[str, Any]
_LOG_TAIL = 2000
# torch's threads wait for each other in a busy loop; with other work on the machine that took 5 times as long
_PATIENT = {"OMP_WAIT_POLICY": "passive"}


class _Lines:
    """Whole lines from a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self._poll = select.poll()  # not select(), which knows no descriptor above 1023
        self._poll.register(descriptor, select.POLLIN)

    def read(self, timeout_s: float | None) -> bytes | None:
        """Return the next line; none once the other side is gone.

        Raises:
            TimeoutError: It did not come within `timeout_s` seconds; none: wait for ever.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            wait = None if deadline is None else 1000 * max(0.0, deadline - time.monotonic())
            if not self._poll.poll(wait):
                raise TimeoutError
            if not self.fill():
                return None
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def fill(self) -> bool:
        """Take in what is there; return whether the other side is."""
        block = os.read(self._descriptor, 1 << 16)
        self._buffer += block
        return bool(block)


class Child:
    """A running child process: `send` requests to it, `receive` its messages."""

    def __init__(self, module: str, *, env: dict[str, str] | None = None) -> None:
        """Start `python -m module`, whose main function calls `serve`."""
        self.module = module
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115 - closed in close()
        child_in, self._to_child = os.pipe()
        self._from_child, child_out = os.pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(child_in), str(child_out)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(child_in, child_out),
                env={**_PATIENT, **os.environ, **(env or {})},
                start_new_session=True,  # Ctrl-C reaches the parent, which decides
            )
        finally:
            os.close(child_in)
            os.close(child_out)
        os.set_blocking(self._to_child, False)
        self._lines = _Lines(self._from_child)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self.process.pid

    def send(self, message: Message) -> None:
        """Send one message, and take in meanwhile what the child says, so that neither waits for the other for ever.

        Raises:
            WorkerError: The child has ended.
        """
        data = json.dumps(message).encode() + b"\n"
        poll = select.poll()
        poll.register(self._to_child, select.POLLOUT)
        poll.register(self._from_child, select.POLLIN)
        try:
            while data:
                if self._to_child in dict(poll.poll()):
                    data = data[os.write(self._to_child, data) :]
                elif not self._lines.fill():
                    raise self.ended()
        except (BrokenPipeError, OSError) as error:
            raise self.ended() from error

    def receive(self, *, timeout_s: float | None = None) -> Message:
        """Return the child's next message, waiting at most `timeout_s` seconds.

        Raises:
            WorkerError: The child ended (with its signal or exit code and the end of its log) or said nothing
                in time; in the second case it still runs.
        """
        try:
            line = self._lines.read(timeout_s)
        except TimeoutError:
            raise WorkerError(f"{self.module} said nothing for {timeout_s:.0f} s{self._log_tail()}") from None
        if line is None:
            raise self.ended()
        message: Message = json.loads(line)
        return message

    def detach(self) -> tuple[int, int]:
        """Hand over the descriptors that write to the child and read from it; the caller closes them."""
        handed = (self._to_child, self._from_child)
        self._to_child = self._from_child = -1
        return handed

    def close(self, *, grace_s: float = 5.0) -> None:
        """End the child: close its input, wait, and kill it if it does not end by itself."""
        for descriptor in (self._to_child, self._from_child):
            if descriptor >= 0:
                os.close(descriptor)
        self._to_child = self._from_child = -1
        try:
            self.process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        """Return the child itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child; at once where the parent gave up."""
        self.close(grace_s=5.0 if kind is None else 0.0)

    def ended(self) -> WorkerError:
        """Return how the child ended, as the error that it is."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return WorkerError(f"{self.module} closed its pipe but still runs{self._log_tail()}")
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; the system may have run out of memory: see `dmesg`" if name == "SIGKILL" else ""
            return WorkerError(f"{self.module} was killed by {name}{hint}{self._log_tail()}")
        return WorkerError(f"{self.module} ended with exit code {code}{self._log_tail()}")

    def _log_tail(self) -> str:
        try:
            size = self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, size - _LOG_TAIL))
            text = self._log.read().decode(errors="replace").strip()
        except ValueError:  # the parent closed it meanwhile: nobody wants to know
            return ""
        return f"; the end of its log:\n{text}" if text else ""


def run(
    module: str,
    request: Message,
    *,
    timeout_s: float,
    env: dict[str, str] | None = None,
    on_event: Callable[[Message], None] = lambda _: None,
) -> Message:
    """Run one request in a child process and return its `result`.

    Messages with an `event` key go to `on_event`; one with `error` becomes a WorkerError; one with `result` ends
    the run.

    Raises:
        WorkerError: The child failed, crashed, was killed, or did not end within `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    with Child(module, env=env) as child:
        child.send(request)
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise WorkerError(f"{module} did not end within {timeout_s:.0f} s and was stopped")
            try:
                message = child.receive(timeout_s=remaining)
            except WorkerError:
                if time.monotonic() >= deadline:
                    continue
                raise
            if "event" in message:
                on_event(message)
            elif "error" in message:
                raise WorkerError(str(message["error"]))
            else:
                result: Message = message["result"]
                return result


class Parent:
    """The child's side of the pipes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        """Open the pipes that the parent handed over."""
        self._lines = _Lines(incoming)
        self._outgoing = os.fdopen(outgoing, "w", encoding="utf-8")
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send one message to the parent."""
        line = json.dumps(message) + "\n"
        with self._lock:
            self._outgoing.write(line)
            self._outgoing.flush()

    def receive(self, *, timeout_s: float | None = None) -> Message | None:
        """Return the parent's next message, or None once the parent is gone.

        Raises:
            TimeoutError: None came within `timeout_s` seconds.
        """
        line = self._lines.read(timeout_s)
        return None if line is None else json.loads(line)


def parent_from_arguments() -> Parent:
    """Return the parent's side, from the arguments that `Child` starts a module with."""
    telemetry.turn_off()
    secrecy.keep()
    return Parent(int(sys.argv[1]), int(sys.argv[2]))


def serve_once(work: Callable[[Message, Parent], Message]) -> None:
    """Answer one request and end: the main function of a module that `run` starts.

    An exception becomes the `error` of the answer, as its type and text; its traceback goes to the log.
    """
    parent = parent_from_arguments()
    request = parent.receive()
    if request is None:
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        parent.send(result=work(request, parent))
    except Exception as error:
        import traceback

        traceback.print_exc()
        parent.send(error=f"{type(error).__name__}: {error}")
        sys.exit(1)


def _end_with(parent: Parent) -> None:
    while parent.receive() is not None:
        pass
    os._exit(1)
