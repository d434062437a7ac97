"""A PostgreSQL of the tests' own: Debian's, in a folder of its own, on a free port of loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PLACES = "/usr/lib/postgresql/*/bin"


@dataclass(frozen=True)
class Cluster:
    """A running server."""

    folder: Path  # of its socket, by which nobody is asked for a password
    port: int


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server until the block ends; yield the URI of its database, which is empty."""
    with cluster("vinoflow", "--auth=trust") as running:
        yield f"postgresql://vinoflow@127.0.0.1:{running.port}/postgres"


@contextmanager
def cluster(owner: str, *options: str, certificate: Sequence[bytes] = ()) -> Iterator[Cluster]:
    """Run a server until the block ends.

    Args:
        owner: The name of its superuser.
        options: Of initdb.
        certificate: Key and certificate, as PEM; none: it speaks no TLS.
    """
    programs = _programs()
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="vinoflow-postgres-"))  # of a short path, for its socket
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    data, port = folder / "data", _free_port()

    def run(*command: str | Path) -> None:
        subprocess.run(list(map(str, command)), user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    try:
        run(programs / "initdb", "-D", data, "-U", owner, "--no-sync", "-E", "UTF8", *options)
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        if certificate:
            for name, content in zip(("server.key", "server.crt"), certificate, strict=True):
                (data / name).write_bytes(content)
                (data / name).chmod(0o600)
                shutil.chown(data / name, data.stat().st_uid)
            settings += " -c ssl=on"
        run(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", settings, "start")
        try:
            yield Cluster(folder, port)
        finally:
            run(programs / "pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def database(uri: str, name: str) -> str:
    """Make another database on a server; return its URI."""
    import psycopg2

    connection = psycopg2.connect(uri)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
    finally:
        connection.close()
    return f"{uri.rpartition('/')[0]}/{name}"


def _programs() -> Path:
    """Return the folder of initdb and pg_ctl; they are installed where they are not there yet."""
    if not (found := _installed()):
        subprocess.run([ROOT / ".ci" / "system-packages", "postgresql"], check=True)
        found = _installed()
    return found[-1]


def _installed() -> list[Path]:
    return sorted(path for path in Path("/").glob(_PLACES.lstrip("/")) if (path / "initdb").is_file())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
