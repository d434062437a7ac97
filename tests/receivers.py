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
from socketserver import BaseServer
from typing import Any, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope

from tests.servers import free_port


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
def mail_server(*, refused: str = "", **options: Any) -> Iterator[tuple[int, list[EmailMessage]]]:
    """Take mail by SMTP; yield the port, and the list of what came.

    Args:
        refused: A recipient for whom it takes none.
        options: aiosmtpd's own: TLS, and who may log in.
    """
    got: list[EmailMessage] = []

    class Handler:
        async def handle_RCPT(self, server: SMTP, session: object, envelope: Envelope, address: str, _: object) -> str:
            if address == refused:
                return "550 nobody here"
            envelope.rcpt_tos.append(address)
            return "250 ok"

        async def handle_DATA(self, server: SMTP, session: object, envelope: Envelope) -> str:
            content = cast(bytes, envelope.content)
            got.append(cast(EmailMessage, message_from_bytes(content, policy=policy.default)))
            return "250 ok"

    controller = Controller(Handler(), hostname="127.0.0.1", port=free_port(), ready_timeout=60, **options)
    controller.start()
    try:
        yield controller.port, got
    finally:
        controller.stop()


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
