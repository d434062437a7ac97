"""docs/production.md, as far as it runs without Docker, systemd and a GPU: its own commands, files and server blocks.

PostgreSQL, S3, nginx, and the units' commands with what the page sets for them; hosts, ports, folders are the test's.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack

import asyncpg
import httpx
import psycopg2
import pytest
import trustme
import yaml

from tasks.registry import pull
from tests import servers
from tests.conftest import ROOT
from tests.postgres import cluster
from tests.production import MODEL, SECRETS, Site, blocks, proxy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All of it, with the deployments made."""
    folder, authority = tmp_path_factory.mktemp("site"), trustme.CA()
    leaf = authority.issue_cert("localhost")
    certificate = [leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes()]
    asks = ("--auth-local=trust", "--auth-host=scram-sha-256")
    with ExitStack() as stack:
        database = stack.enter_context(cluster("postgres", *asks, certificate=certificate))
        store = stack.enter_context(servers.s3(folder / "s3", bucket="models"))
        site = Site(folder, database, store, running=stack.enter_context(ExitStack()))
        for name in ("etc/vinoflow", "etc/nginx", "etc/ssl", "backup", "var/lib/vinoflow"):
            (folder / name).mkdir(parents=True)
        for name in ("db.pem", "ca.pem"):
            authority.cert_pem.write_to_path(folder / "etc" / "vinoflow" / name)
        for name, content in site.files.items():
            lines = "".join(f"{key}={value}\n" for key, value in content.items())
            (folder / "etc" / "vinoflow" / f"{name}.env").write_text(lines)
        for name in ("configs", "docs"):
            (site.state / name).symlink_to(ROOT / name)
        content = servers.deployments()
        content["deployments"] = [one for one in content["deployments"] if one["name"] != "after-promotion"]
        (site.state / "prefect.yaml").write_text(yaml.safe_dump(content))  # no model is here that could answer
        site.type(blocks("PostgreSQL")[0], "for new role: ", "again: ", SECRETS["PGPASSWORD"])
        proxy(site, stack, certificate)
        site.start()
        site.run(blocks("Deployments and queues")[0].splitlines()[0])
        site.register("a")
        yield site


@pytest.fixture(scope="module")
def another(site: Site) -> str:
    """The certificate of an authority that signed nothing here."""
    trustme.CA().cert_pem.write_to_path(path := site.folder / "another.pem")
    return str(path)


def test_a_worker_promotes_through_the_proxies(site: Site) -> None:
    with site.work("cpu"):
        asked = f"-p reference={MODEL}@latest -p alias=champion"
        watched = site.run(f"prefect deployment run promote/on-request {asked} --watch")
        assert "vinoflow.model.promoted" in watched and "successfully" in watched
        lines = site.status()
    assert lines["model", MODEL]["about"] == "champion 1; newest 1"
    (promoted,) = site.ask("/events/filter", filter={"event": {"name": ["vinoflow.model.promoted"]}})["events"]
    assert promoted["payload"]["to_version"] == 1, "it came by the websocket"
    page = httpx.get(f"{site.url('prefect')}/ui-settings", verify=site.trust, timeout=30).json()
    assert page["api_url"] == f"{site.url('prefect')}/api"


def test_queues_runs_on_demand_and_keys(site: Site) -> None:
    assert "limit of 1 set on work queue 'gpu'" in site.run(blocks("GPU workers")[1])
    (queue,) = site.ask("/work_queues/filter", work_queues={"name": {"any_": ["gpu"]}})
    assert queue["concurrency_limit"] == 1
    assert "Created flow run" in site.run(blocks("Deployments and queues")[1])
    (line,) = [line for line in blocks("With Docker Compose")[0].splitlines() if line.startswith("vinoflow")]
    assert "VINOFLOW_API_KEYS=web:" in site.run(line)


def test_strangers_are_refused(site: Site, another: str) -> None:
    assert httpx.get(site.url("mlflow"), verify=site.trust, timeout=30).status_code == 401
    wrong = site.status(expect=1, MLFLOW_TRACKING_PASSWORD="x", PREFECT_API_AUTH_STRING="worker:x")
    untrusted = site.status(expect=1, MLFLOW_TRACKING_SERVER_CERT_PATH=another, PREFECT_API_SSL_CERT_FILE=another)
    for lines, why in ((wrong, "401"), (untrusted, "CERTIFICATE_VERIFY_FAILED")):
        down = {what: one["about"] for (what, _), one in lines.items() if one["state"] == "down"}
        assert set(down) == {"mlflow", "prefect"} and all(why in about for about in down.values()), down


def test_both_servers_look_whom_they_tell_the_databases_password(
    site: Site, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = f"host={site.database.folder} port={site.database.port} user=postgres"
    with psycopg2.connect(socket) as connection, connection.cursor() as cursor:
        joined = "pg_stat_ssl JOIN pg_stat_activity USING (pid)"
        cursor.execute(f"SELECT datname, bool_and(ssl) FROM {joined} WHERE usename = 'vinoflow' GROUP BY 1")
        assert dict(cursor.fetchall()) == {"mlflow": True, "prefect": True}
    connection.close()
    for name in ("mlflow", "prefect"):
        for key, value in site.files[name].items():
            if key.startswith("PG"):
                monkeypatch.setenv(key, value)
    monkeypatch.setenv("PGSSLROOTCERT", another)
    with pytest.raises(psycopg2.OperationalError, match="certificate verify failed"):
        psycopg2.connect(site.files["mlflow"]["MLFLOW_BACKEND_STORE_URI"])
    url = site.files["prefect"]["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    with pytest.raises(ssl.SSLCertVerificationError):
        asyncio.run(asyncpg.connect(url.replace("+asyncpg", "")))


def test_backups_can_be_restored(site: Site) -> None:
    backup, restore, look = blocks("Backups and restore")
    *dumps, copy = backup.splitlines()
    *databases, copy_back = restore.splitlines()
    site.register("b")
    promote = blocks("With Docker Compose")[1].removeprefix("docker compose exec worker ")
    site.run(promote)
    with site.work("gpu"):
        before = site.known()
    assert before["registry"] == ["1 models, 2 versions", "champion 2; newest 2"]
    site.run("\n".join(dumps), **site.postgres)
    site.register("c")  # its files are in the copy, the version is not
    site.run(copy, **site.postgres)

    site.running.close()
    site.run("dropdb mlflow; dropdb prefect; aws s3 rm --recursive s3://models/mlflow", **site.postgres)
    site.run("\n".join(databases), **site.postgres)
    site.run(blocks("Upgrades")[0])
    site.start()
    told = site.run("vinoflow doctor", expect=1)
    for number in (1, 2):
        assert re.search(rf"{MODEL}/{number} +manifest.json of \S+ is missing; restore it from a backup", told), told
        assert f"the report.json of {MODEL}/{number} is missing" in told
    assert f"{MODEL}/3" not in told

    site.run(copy_back, **site.postgres)
    with site.work("gpu"):
        site.run(look)
        assert site.known() == before
    with site.here_too("another-cache"):
        champion = pull(f"{MODEL}@champion").path
    assert (champion / "openvino_model.bin").read_text() == "b"
