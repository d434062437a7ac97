"""A block of Prefect that sends its notifications by a mail server of one's own."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from email.message import EmailMessage

from prefect.blocks.abstract import NotificationBlock, NotificationError
from pydantic import Field, SecretStr

_TIMEOUT_S = 30.0


class Email(NotificationBlock):
    """Sends what an automation has to say as an e-mail by SMTP.

    The Prefect server sends it, so vinoflow has to be installed where that runs; it knows the block by the entry point
    `prefect.collections`.
    """

    _block_type_name = "Email"
    _block_type_slug = "email"

    host: str = Field(description="The mail server.")
    port: int = Field(587, ge=1, le=65535, description="Its port.")
    encryption: str = Field("starttls", pattern="^(starttls|tls|none)$", description="starttls, tls or none.")
    username: str = Field("", description="Empty: without logging in.")
    password: SecretStr = Field(SecretStr(""), description="Kept encrypted by Prefect.")
    sender: str = Field(description="From whom.")
    to: list[str] = Field(min_length=1, description="To whom.")

    async def notify(self, body: str, subject: str | None = None) -> None:
        """Send a message.

        Raises:
            NotificationError: The mail server does not answer, is not trusted, or refuses, if only one recipient.
        """
        message = EmailMessage()
        message["From"], message["To"] = self.sender, ", ".join(self.to)
        message["Subject"] = " ".join((subject or "vinoflow").split())  # a line break would begin another header
        message.set_content(body)
        if self.username and not f"{self.username}{self.password.get_secret_value()}".isascii():
            raise NotificationError(f"{self._server}: smtplib sends only ASCII as user and password; choose others")
        try:
            refused = await asyncio.to_thread(self._send, message)
        except (OSError, smtplib.SMTPException) as error:
            raise NotificationError(f"{self._server}: {error}") from error
        if refused:
            raise NotificationError(f"{self._server}: it takes no mail for {refused}")

    @property
    def _server(self) -> str:
        return f"mail server {self.host}:{self.port}"

    def _send(self, message: EmailMessage) -> dict[str, tuple[int, bytes]]:
        """Return the recipients whom the server refuses; smtplib raises only where it takes none."""
        trusted = ssl.create_default_context()
        with self._connected(trusted) as server:
            if self.encryption == "starttls":
                server.starttls(context=trusted)
            if self.username:
                server.login(self.username, self.password.get_secret_value())
            return server.send_message(message)

    def _connected(self, trusted: ssl.SSLContext) -> smtplib.SMTP:
        if self.encryption == "tls":
            return smtplib.SMTP_SSL(self.host, self.port, timeout=_TIMEOUT_S, context=trusted)
        return smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT_S)
