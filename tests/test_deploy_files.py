"""compose.yaml, deploy/, and the commands there and in docs/production.md, as far as they run without Docker."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.conftest import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
PRODUCTION = (ROOT / "docs" / "production.md").read_text()
PROGRAMS = ("vinoflow", "mlflow", "prefect")
# of libraries that have no list: libpq's and asyncpg's, boto's, PostgreSQL's image's, huggingface_hub's, and shells'
OTHERS = re.compile(r"PG(PASSWORD|USER|HOST)|AWS_\w+|POSTGRES_(USER|PASSWORD|DB)|HF_TOKEN|HF_ENDPOINT|DO_NOT_TRACK")


def schema_says(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_compose_file_keeps_its_schema(tmp_path: Path) -> None:
    good = schema_says(ROOT / "compose.yaml")
    assert good.returncode == 0, good.stdout
    broken = tmp_path / "compose.yaml"
    broken.write_text((ROOT / "compose.yaml").read_text().replace("start_period:", "start_periode:"))
    assert "start_periode" in schema_says(broken).stdout, "the check can fail"


def test_services_name_only_what_is_there() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for other, how in service.get("depends_on", {}).items():
            ends = "restart" in services[other] and services[other]["restart"].startswith("on-failure")
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy"), name
            assert ends or "healthcheck" in services[other], f"{name} waits for the health of {other}"
        for volume in service.get("volumes", ()):
            source, target = volume.split(":")[:2]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
            assert target.startswith("/var/")
        for config in service.get("configs", ()):
            assert config["source"] in COMPOSE["configs"]


def test_only_this_host_reaches_the_ports_and_secrets_have_no_defaults() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3 and all(port.startswith("127.0.0.1:") for port in ports)
    text = (ROOT / "compose.yaml").read_text()
    asked = dict(re.findall(r"\$\{(\w+)([^}]*)\}", text))
    for secret in ("POSTGRES_PASSWORD", "PREFECT_AUTH"):
        assert set(re.findall(rf"\${{{secret}([^}}]*)}}", text)) <= {":?", *re.findall(rf"{secret}(:\?[^}}]+)", text)}
    assert asked["VINOFLOW_API_KEYS"] == ":-", "without keys `serve` refuses 0.0.0.0"
    passed = {
        name for service in COMPOSE["services"].values() for name, value in _environment(service) if value is None
    }
    example = (ROOT / "deploy" / "env.example").read_text()
    assert set(asked) | passed == set(re.findall(r"^#?([A-Z_0-9]+)=", example, re.MULTILINE))
    for line in example.splitlines():
        if re.match(r"\w*(PASSWORD|AUTH|TOKEN|KEYS?)=", line):
            assert line.endswith("="), f"{line}: an example of a secret is one that somebody keeps"
    assert ".env\n" in (ROOT / ".gitignore").read_text()


def test_the_image_has_what_it_is_made_of() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for name in line.split()[:-1]]
    assert {"flows", "tasks", "constraints.txt", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists() and f"!{name}" in ignored, name
    (extras,) = re.findall(r"/opt/vinoflow\[([\w,]+)\]", DOCKERFILE)
    assert set(extras.split(",")) <= set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    users = [line for line in DOCKERFILE.splitlines() if line.startswith("USER")]
    assert users == ["USER vinoflow"]


@pytest.fixture(scope="module")
def analyze() -> str:
    if not shutil.which("systemd-analyze"):
        subprocess.run([ROOT / ".ci" / "system-packages", "systemd"], check=True)
    return "systemd-analyze"


def verified(analyze: str, unit: Path, folder: Path, text: str) -> str:
    """Return what systemd says of a unit, with our programs where they are here."""
    path = folder / unit.name
    path.write_text(text.replace("/opt/vinoflow/bin", str(Path(sys.executable).parent)))
    done = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True, check=False)
    return done.stderr + done.stdout + ("" if done.returncode == 0 else f"exit code {done.returncode}")


@pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
def test_systemd_takes_the_units(analyze: str, unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    assert verified(analyze, unit, tmp_path, text) == ""
    assert "ProtectSystems" in verified(analyze, unit, tmp_path, text.replace("ProtectSystem=", "ProtectSystems="))
    exposed = [analyze, "security", "--offline=true", "--threshold=25", str(tmp_path / unit.name)]
    (tmp_path / unit.name).write_text(text)
    found = subprocess.run(exposed, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-200:]  # 2.5 of 10; a unit without any of it has 9.6


def test_units_lose_no_request_at_their_end_and_have_no_secret_of_their_own() -> None:
    assert [unit.stem for unit in UNITS] == [
        "vinoflow-mlflow",
        "vinoflow-prefect",
        "vinoflow-serve@",
        "vinoflow-worker@",
    ]
    for unit in UNITS:
        text = unit.read_text()
        assert ("KillMode=mixed" in text) == unit.stem.endswith("@")
        for name, value in re.findall(r"^Environment=(\w+)=(.*)$", text, re.M):
            assert not re.search("PASSWORD|TOKEN|SECRET|KEY|AUTH", name) and "@" not in value
        assert re.search(r"^EnvironmentFile=-?/etc/vinoflow/\w+\.env$", text, re.M)
    assert "--host 127.0.0.1" in UNITS[0].read_text() and "--host 127.0.0.1" in UNITS[1].read_text()


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each command of our programs in these files, by where it stands."""
    for unit in UNITS:
        for line in re.findall(r"^ExecStart=/opt/vinoflow/bin/(.+)$", unit.read_text(), re.M):
            yield unit.name, shlex.split(line.replace("%i", "tiny"))
    for name, service in COMPOSE["services"].items():
        if "command" in service:
            yield f"compose.yaml {name}", shlex.split(re.sub(r"\$\{\w+:-(.*?)\}", r"\1", service["command"]))
    for block in re.findall(r"```(?:console|sh)\n(.*?)```", PRODUCTION, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            start = words.index("exec") + 2 if "exec" in words else 0  # docker compose exec SERVICE
            if words and Path(words[start]).name in PROGRAMS:
                end = next((n for n, word in enumerate(words) if n > start and word in ("|", ">", "&&", ";")), None)
                yield "docs/production.md", [Path(words[start]).name, *words[start + 1 : end]]


def parsed(program: str, arguments: list[str]) -> None:
    """Have a program's own command line read arguments; nothing is run."""
    if program == "prefect":
        from prefect.cli._app import _app as app

        app.parse_args(arguments, print_error=False, exit_on_error=False)
        return
    if program == "vinoflow":
        import typer

        from flows.cli import app as ours

        command: click.Command = typer.main.get_command(ours)
    else:
        from mlflow.cli import cli as command
    while isinstance(command, click.Group):
        name, *arguments = arguments
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"{program} has no command {name}"
        command = found
    command.make_context(program, arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # typer's own use of it
def test_every_command_parses() -> None:
    tried = set()
    for where, (program, *arguments) in commands():
        try:
            parsed(program, arguments)
        except Exception as error:
            raise AssertionError(f"{where}: {program} {' '.join(arguments)}: {error!r}") from error
        tried.add((program, arguments[0]))
    wanted = {("mlflow", "server"), ("prefect", "server"), ("prefect", "worker"), ("vinoflow", "serve")}
    assert wanted | {("vinoflow", "deploy"), ("vinoflow", "api-key")} <= tried
    for program, wrong in (
        ("vinoflow", "serve x --hots y"),
        ("mlflow", "server --wrokers 1"),
        ("prefect", "wroker start"),
    ):
        with pytest.raises(Exception, match=r"(?i)no such option|unknown|unused|unable"):
            parsed(program, wrong.split())


def _environment(service: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(service.get("environment", {}).items())


@pytest.mark.slow
def test_every_variable_is_one_that_somebody_reads() -> None:
    import prefect
    from mlflow.cli import cli
    from prefect.settings import get_current_settings
    from prefect.settings.legacy import _get_settings_fields

    read_by_name = "".join(path.read_text() for path in Path(prefect.__file__).parent.rglob("*.py"))
    ours = "".join(path.read_text() for folder in ("flows", "tasks") for path in (ROOT / folder).rglob("*.py"))
    known = set(_get_settings_fields(type(get_current_settings()))) | {"PREFECT_HOME"}
    known |= {str(option.envvar) for option in cli.commands["server"].params if getattr(option, "envvar", None)}
    import mlflow.environment_variables

    known |= {name for name in dir(mlflow.environment_variables) if name.startswith("MLFLOW_")}
    known |= set(re.findall(r"\bVINOFLOW_[A-Z_]+", ours))
    named = {name for service in COMPOSE["services"].values() for name, _ in _environment(service)}
    for unit in UNITS:
        named |= set(re.findall(r"^(?:Environment=|#.*?)([A-Z]+_[A-Z_0-9]*[A-Z])=", unit.read_text(), re.M))
    named |= set(re.findall(r"\b([A-Z_]+)=/var", DOCKERFILE))
    named |= set(re.findall(r"\b((?:MLFLOW|PREFECT|VINOFLOW)_[A-Z_0-9]*[A-Z])\b", PRODUCTION))
    named |= set(
        re.findall(r"\b((?:MLFLOW|PREFECT|VINOFLOW)_[A-Z_0-9]*[A-Z])\b", "".join(u.read_text() for u in UNITS))
    )
    ours_alone = {"PREFECT_AUTH"}  # compose.yaml's own, in .env
    unknown = {
        name
        for name in named - known - ours_alone - {""}
        if not (OTHERS.fullmatch(name) or f'"{name}"' in read_by_name)
    }
    assert not unknown
    assert len(named) > 20
