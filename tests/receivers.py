"""Who is told: a webhook and a mail server on loopback, which keep what they get."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer, StreamRequestHandler, ThreadingTCPServer
from typing import Any, cast


@contextmanager
def webhook() -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Take JSON; yield the port, and the list of what came."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Keep the tests' output clean."""

    with _running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield port, got


def block(port: int) -> None:
    """Keep a webhook on the Prefect server that is set, as the block slack-webhook/team."""
    code = "from prefect.blocks.notifications import SlackWebhook as Hook"
    code += f"; Hook(url='json://127.0.0.1:{port}/services/T/B/x').save('team')"
    subprocess.run([sys.executable, "-c", code], check=True)


@contextmanager
def mail_server() -> Iterator[tuple[int, list[EmailMessage]]]:
    """Take mail by SMTP (RFC 5321, the least of it); yield the port, and the list of what came."""
    got: list[EmailMessage] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 tests")
            while line := self.rfile.readline():
                word = line.split(maxsplit=1)[0].upper() if line.strip() else b""
                if word == b"DATA":
                    self._say("354 go on")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    got.append(cast(EmailMessage, message_from_bytes(b"".join(lines), policy=policy.default)))
                self._say("221 bye" if word == b"QUIT" else "250 ok")
                if word == b"QUIT":
                    return

        def _say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    with _running(ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        yield port, got


@contextmanager
def _running(server: BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
