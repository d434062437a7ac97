"""What docs/production.md sets up, by its own blocks: servers by the units' commands, nginx, a shell on their hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.registry import entries
from tests import servers, small
from tests.conftest import ROOT
from tests.end_to_end.test_promotion import until
from tests.postgres import Cluster
from tests.servers import BIN, free_port
from tests.terminal import Terminal

PAGE = (ROOT / "docs" / "production.md").read_text()
MODEL = "smollm2-135m-instruct"
# in place of the page's dots; all others are `test`
SECRETS = {"PGPASSWORD": "d41d8cd98f00b204", "MLFLOW_TRACKING_PASSWORD": "9800998ecf8427e1", "HF_TOKEN": "none"}


def blocks(heading: str, kind: str = "sh") -> list[str]:
    """Return a section's blocks of a kind."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return [text for _, text in re.findall(rf"^( *)```{kind}\n(.*?)^\1```$", section, re.M | re.S)]


@dataclass
class Site:
    """A team's servers, as the page has them, and a shell on their hosts."""

    folder: Path
    database: Cluster
    s3: dict[str, str]
    running: ExitStack  # the servers and workers
    ports: dict[str, int] = field(
        default_factory=lambda: {n: free_port() for n in ("5000", "4200", "mlflow", "prefect")}
    )

    @property
    def state(self) -> Path:
        return self.folder / "var" / "lib" / "vinoflow"

    def here(self, text: str) -> str:
        """Return a text of the page with the hosts, ports and folders of this machine."""
        text = text.replace("/opt/vinoflow/bin", str(BIN)).replace("-g www-data ", "")
        text = re.sub(r"(?<![\w.])/(?=(etc|var|backup)/)", f"{self.folder}/", text)
        text = text.replace("db.example.com", f"localhost:{self.database.port}")
        text = text.replace("https://s3.example.com", self.s3["AWS_ENDPOINT_URL"])
        text = re.sub(r"https://(mlflow|prefect)\.example\.com", lambda found: self.url(found[1]), text)
        return re.sub(r"(127\.0\.0\.1:|--port )(5000|4200)", lambda found: f"{found[1]}{self.ports[found[2]]}", text)

    def url(self, proxied: str) -> str:
        return f"https://localhost:{self.ports[proxied]}"

    @cached_property
    def files(self) -> dict[str, dict[str, str]]:
        """What the page puts into each file of /etc/vinoflow, by its name."""
        found: dict[str, dict[str, str]] = {}
        for text in re.findall(r"^```ini\n(.*?)^```$", PAGE, re.M | re.S):
            for name, lines in re.findall(r"^# /etc/vinoflow/(\w+)\.env\n(.*?)(?=^# /etc|\Z)", text, re.M | re.S):
                found.setdefault(name, {}).update(re.findall(r"^(\w+)=(.*)$", self.here(lines), re.M))
        for content in found.values():
            for name, value in content.items():
                content[name] = value.replace("...", SECRETS.get(name, "test"))
        return found

    def unit(self, name: str, instance: str = "") -> tuple[list[str], dict[str, str]]:
        """Return a unit's command and environment, as systemd makes them."""
        text = self.here((ROOT / "deploy" / "systemd" / f"vinoflow-{name}.service").read_text().replace("%i", instance))
        (command,) = re.findall(r"^ExecStart=(.+)$", text, re.M)
        own = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.M))
        files = self.files[name.rstrip("@")]
        return command.split(), {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self.state)} | own | files

    def start(self) -> None:
        """Start both servers."""
        started = [self._started(name) for name in ("mlflow", "prefect")]
        for (process, log), port, path in zip(started, ("5000", "4200"), ("/health", "/api/health"), strict=True):
            servers.answers(process, f"http://127.0.0.1:{self.ports[port]}{path}", log=log)

    def work(self, queue: str) -> ExitStack:
        """Start a worker of a queue; it ends with what is returned, or with the servers."""
        stack, before = self.running.enter_context(ExitStack()), self._workers()
        _, log = self._started("worker@", queue, stack)
        until(lambda: self._workers() - before, log=log)
        return stack

    def _workers(self) -> set[str]:
        return {one["name"] for one in self.ask("/work_pools/vinoflow/workers/filter")}

    def _started(self, name: str, instance: str = "", stack: ExitStack | None = None) -> tuple[Any, Path]:
        command, environment = self.unit(name, instance)
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(command, cwd=self.state, env=environment, stdout=output, stderr=output)
        (stack or self.running).callback(servers.stop, process)
        return process, log

    def run(self, script: str, *, expect: int = 0, **more: str) -> str:
        """Run commands of the page on a host of clients."""
        environment = self.unit("worker@")[1] | {"PREFECT_CLI_COLORS": "false"} | more
        shell = ["sh", "-ec", self.here(script)]
        done = subprocess.run(shell, cwd=self.state, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == expect, f"{script}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @property
    def postgres(self) -> dict[str, str]:
        """The environment of the user postgres."""
        return {"PGHOST": str(self.database.folder), "PGPORT": str(self.database.port), "PGUSER": "postgres"} | self.s3

    def type(self, script: str, question: str, again: str, secret: str) -> None:
        """Run commands that ask for a password, twice."""
        with Terminal(self.here(script), program=("sh", "-ec"), **self.postgres) as terminal:
            for asked in (question, again):
                terminal.wait_for(asked)
                terminal.type(f"{secret}\n")
            assert terminal.end() == 0, terminal.shown

    def status(self, *, expect: int = 0, **more: str) -> dict[tuple[str, str], dict[str, str]]:
        lines = json.loads(self.run("vinoflow status --json 2>/dev/null", expect=expect, **more))
        return {(one["what"], one["name"]): one for one in lines}

    def ask(self, path: str, **content: Any) -> Any:
        """Ask Prefect through its proxy."""
        worker = self.files["worker"]
        name, _, password = worker["PREFECT_API_AUTH_STRING"].partition(":")
        answer = httpx.post(
            f"{worker['PREFECT_API_URL']}{path}", json=content, auth=(name, password), verify=self.trust, timeout=30
        )
        return answer.raise_for_status().json()

    @cached_property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "etc" / "vinoflow" / "ca.pem")

    @contextmanager
    def here_too(self, cache: str) -> Iterator[None]:
        """Have this process ask the registry as a worker does."""
        with pytest.MonkeyPatch.context() as patch:
            home = {"VINOFLOW_HOME": str(self.state), "VINOFLOW_CACHE": str(self.folder / cache)}
            for name, value in (self.files["worker"] | home).items():
                patch.setenv(name, value)
            yield

    def register(self, content: str) -> None:
        with self.here_too("cache"):
            small.version(self.folder / "made", content, made_by=small.recipe(MODEL))

    def known(self) -> dict[str, Any]:
        """Return what must be as before after a restore."""
        status = self.status()
        with self.here_too("cache"):
            moves = [noted.entry for noted in entries(MODEL)]
        return {
            "ledger": moves,
            "registry": [one["about"] for (what, _), one in status.items() if what in ("mlflow", "model")],
            "deployments": {
                name: one["about"].partition(" ago")[2] for (what, name), one in status.items() if what == "deployment"
            },
            "runs": sorted((one["name"], one["state_type"]) for one in self.ask("/flow_runs/filter")),
            "automations": sorted(one["name"] for one in self.ask("/automations/filter")),
        }


def proxy(site: Site, stack: ExitStack, certificate: Sequence[bytes]) -> None:
    """Start nginx with the page's server blocks."""
    if not shutil.which("nginx"):
        subprocess.run([ROOT / ".ci" / "system-packages", "nginx"], check=True)
    (htpasswd,) = blocks("TLS, passwords and keys")
    site.type(htpasswd, "Password: ", "Password: ", SECRETS["MLFLOW_TRACKING_PASSWORD"])
    (text,) = blocks("TLS, passwords and keys", "nginx")
    for name in ("mlflow", "prefect"):
        text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{site.ports[name]} ssl", 1)
        for suffix, content in zip(("key", "pem"), certificate, strict=True):
            (site.folder / "etc" / "ssl" / f"{name}.example.com.{suffix}").write_bytes(content)
    nginx = site.folder / "etc" / "nginx"
    temporary = "".join(f"{one}_temp_path {one};\n" for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.geteuid() == 0 else ""  # pytest's folders are nobody else's
    conf = f"{user}daemon off;\npid pid;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{site.here(text)}}}\n"
    (nginx / "nginx.conf").write_text(conf)
    command = ["nginx", "-p", str(nginx), "-e", "log", "-c", "nginx.conf"]
    process = subprocess.Popen(command)
    stack.callback(servers.stop, process)
