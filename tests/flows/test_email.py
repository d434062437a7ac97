"""The block of Prefect that sends mail, with mail servers that speak TLS and ask who is there."""

from __future__ import annotations

import asyncio
import ssl
import traceback
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword, Session
from prefect.blocks.abstract import NotificationError

from flows.email import Email
from tests.receivers import mail_server
from tests.servers import free_port

PASSWORD = "correct horse"


class Door:
    """Lets one user in, and keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[LoginPassword] = []

    def __call__(
        self, server: SMTP, session: Session, envelope: object, mechanism: str, login: LoginPassword
    ) -> AuthResult:
        self.told.append(login)
        return AuthResult(success=login == LoginPassword(b"vinoflow", PASSWORD.encode()), handled=False)


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


def send(port: int, **settings: Any) -> None:
    known = {"host": "localhost", "port": port, "username": "vinoflow", "password": PASSWORD, "sender": "a@tests"}
    block = Email.model_validate(known | {"to": ["b@tests", "c@tests"]} | settings)
    asyncio.run(block.notify("The gates held.\n", "small/1 is\nvalidated"))


def refused(port: int, **settings: Any) -> str:
    """Return why nothing was sent; neither that nor its traceback has the password."""
    with pytest.raises(NotificationError) as caught:
        send(port, **settings)
    said = str(caught.value)
    secret = settings.get("password", PASSWORD)
    assert said.startswith(f"mail server localhost:{port}: ")
    assert secret not in "".join(traceback.format_exception(caught.value))
    return said


@pytest.mark.parametrize("excluded", ["PLAIN", "LOGIN"])
def test_a_login_after_starttls(trusted: None, certificate: ssl.SSLContext, door: Door, excluded: str) -> None:
    only_in_tls = {"require_starttls": True, "auth_required": True, "auth_exclude_mechanism": [excluded]}
    with mail_server(tls_context=certificate, authenticator=door, **only_in_tls) as (port, got):
        send(port)
    (mail,) = got
    assert (mail["subject"], mail["from"], mail["to"]) == ("small/1 is validated", "a@tests", "b@tests, c@tests")
    assert mail.get_content().strip() == "The gates held."
    assert door.told == [LoginPassword(b"vinoflow", PASSWORD.encode())]


def test_a_login_in_tls_from_the_start(trusted: None, certificate: ssl.SSLContext, door: Door) -> None:
    with mail_server(ssl_context=certificate, authenticator=door, auth_require_tls=False) as (port, got):
        send(port, encryption="tls")
        assert len(got) == len(door.told) == 1
        send(port, encryption="tls", username="")
        assert len(got) == 2 and len(door.told) == 1


@pytest.mark.parametrize(("encryption", "how"), [("starttls", "tls_context"), ("tls", "ssl_context")])
def test_a_server_that_is_not_trusted_is_told_nothing(
    certificate: ssl.SSLContext, door: Door, encryption: str, how: str
) -> None:
    with mail_server(**{how: certificate}, authenticator=door, auth_require_tls=False) as (port, got):
        assert "certificate verify failed" in refused(port, encryption=encryption)
    assert not got and not door.told


def test_a_server_of_another_name_is_not_trusted(trusted: None, authority: trustme.CA, door: Door) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("mail.example.com").configure_cert(context)
    with mail_server(tls_context=context, authenticator=door, auth_require_tls=False) as (port, got):
        assert "certificate is not valid for 'localhost'" in refused(port)
    assert not got and not door.told


def test_a_server_without_tls_gets_no_password(door: Door) -> None:
    with mail_server(authenticator=door, auth_require_tls=False) as (port, got):
        assert "STARTTLS" in refused(port)
        assert refused(port, encryption="tls")
    assert not got and not door.told


def test_a_wrong_password(trusted: None, certificate: ssl.SSLContext, door: Door) -> None:
    with mail_server(tls_context=certificate, authenticator=door) as (port, got):
        assert "535" in refused(port, password="wrong horse")
    assert not got and {login.password for login in door.told} == {b"wrong horse"}


def test_a_password_that_smtplib_cannot_send(door: Door) -> None:
    with mail_server(authenticator=door, auth_require_tls=False) as (port, got):
        assert "only ASCII" in refused(port, encryption="none", password="falsches Roß")
    assert not got and not door.told


def test_a_recipient_whom_the_server_does_not_take_is_told(trusted: None) -> None:
    with mail_server(refused="c@tests") as (port, got):
        assert "550" in (said := refused(port, encryption="none", username="")) and "c@tests" in said
    assert [mail["subject"] for mail in got] == ["small/1 is validated"], "the other one has it"


def test_nobody_listens() -> None:
    for encryption in ("starttls", "tls", "none"):
        assert "refused" in refused(free_port(), encryption=encryption)
