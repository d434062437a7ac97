"""What docs/security.md promises and no other test shows; and that each test that it names exists."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tasks import secrecy
from tasks.batch import plan, refuse_secrets
from tasks.config import Batch, Export, LocalSource, Serving
from tasks.download import download
from tasks.errors import BatchError, EngineError, RecipeError
from tasks.export import export
from tasks.manifest import read_manifest
from tasks.recipe_file import load_recipe
from tasks.registry import pull
from tests import small
from tests.conftest import ROOT, write_tiny_recipe
from tests.tiny import make_tiny

PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def test_each_test_that_the_page_names_exists() -> None:
    for path, name in NAMED:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.M), f"{path}::{name}"
    tables = PAGE.partition("\n## A malicious checkpoint")[2].partition("\n## What is not covered")[0]
    threats = [
        line for line in tables.splitlines() if line.startswith("| ") and not line.startswith(("| threat", "| ---"))
    ]
    assert len(threats) > 30
    for line in threats:
        assert "::" in line or "**none**" in line, f"no test, and does not say so: {line}"


def test_the_page_s_limits_are_those_of_the_code() -> None:
    for path in re.findall(r"`((?:tasks|flows|deploy)/[\w./@-]+)`", PAGE):
        assert (ROOT / path).exists(), path


# ---- the checkpoint


class Planted:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.mark}",))


@pytest.mark.slow
def test_no_code_of_a_checkpoint_runs(home: Path, tmp_path: Path) -> None:
    """Pickles beside the weights, modules that config and tokenizer name, a plug-in of weights that are not wanted."""
    folder, mark = make_tiny("llama", tmp_path / "model"), tmp_path / "ran"
    for name in ("pytorch_model.bin", "model.pkl", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Planted(mark)))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    for name, keys in (
        ("config.json", ("AutoConfig", "AutoModelForCausalLM")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = {key: ["evil.Evil", None] if key == "AutoTokenizer" else "evil.Evil" for key in keys}
        (folder / name).write_text(json.dumps(content))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))
    checkpoint = download(LocalSource(kind="local", path=folder))
    names = {entry.name for entry in read_manifest(checkpoint.path).files}
    assert not any(name.endswith((".py", ".bin", ".pkl", ".pt")) or "adapter" in name for name in names)
    made = export(checkpoint, Export(weight_format="int8"))
    assert (made.path / "openvino_model.bin").is_file()
    assert not mark.exists()
    pickle.loads((folder / "model.pkl").read_bytes())
    assert mark.exists(), "the plant works"


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{% for a in messages.__class__.__base__.__subclasses__() %}{{ a }}{% endfor %}",
    ],
)
def test_a_chat_template_reaches_no_python(tiny_checkpoint: Path, tmp_path: Path, template: str) -> None:
    """Neither in transformers, which validation asks, nor in the engine, which serves."""
    from jinja2.exceptions import SecurityError, UndefinedError
    from transformers import AutoTokenizer

    mark = tmp_path / "ran"
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, local_files_only=True)
    tokenizer.chat_template = template.replace("MARK", str(mark))
    with pytest.raises((SecurityError, UndefinedError)):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert not mark.exists()


@pytest.mark.slow
def test_a_hostile_template_in_the_engine_is_text_or_an_error(tiny_export: Any, tmp_path: Path) -> None:
    import shutil

    from tasks.config import Message
    from tasks.engine import Engine, Request

    folder = tmp_path / "model"
    shutil.copytree(tiny_export.path, folder)
    hostile = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__ }}"
    for path in folder.glob("*chat_template*"):
        path.write_text(hostile)
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "chat_template" in content:
            path.write_text(json.dumps({**content, "chat_template": hostile}))
    request = Request(messages=(Message(role="user", content="Hello"),), max_new_tokens=2)
    try:
        with Engine(folder, device="CPU") as engine:
            said = [done.prompt for _, done in engine.answers([request])]
    except EngineError as error:
        said = [str(error)]
    assert "subprocess" not in said[0] and "<class 'type'>" not in said[0]


def test_a_model_does_not_command_the_terminal() -> None:
    code = (
        "import sys\nfrom flows import cli\nfrom tasks import serve\n"
        "def answer(*_, on_text, **__):\n"
        "    on_text(0, 'a\\x1b]52;c;ZXZpbA==\\x07b\\x9b31mc\\r\\n\\td')\n    raise KeyboardInterrupt\n"
        "serve.answer = answer\nsys.stdout.isatty = lambda: SEEN\n"
        "sys.argv = ['vinoflow', 'ask', 'Hello', '--model', 'tiny/1']\ncli.main()"
    )
    shown = {}
    for where in ("terminal", "pipe"):
        text = code.replace("SEEN", str(where == "terminal"))
        done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, check=False)
        shown[where] = done.stdout.decode()
    assert shown == {"terminal": "a]52;c;ZXZpbA==b31mc\n\td", "pipe": "a\x1b]52;c;ZXZpbA==\x07b\x9b31mc\r\n\td"}


# ---- the artifact store


def test_code_in_the_store_is_not_run_by_us(with_store: None, home: Path, tmp_path: Path) -> None:
    """MLflow's own loader would run it; whoever serves, asks or answers batches takes the model's files alone."""
    version, mark = small.version(tmp_path, "a"), tmp_path / "ran"
    stored = [path for path in (home / "mlruns").rglob("*.py") if "chat_model" in path.name]
    assert stored
    for path in stored:
        path.unlink()
        path.write_text(f"open({str(mark)!r}, 'w').close()\n")
    pulled = pull(version.reference)
    assert not mark.exists()
    assert {path.suffix for path in pulled.path.iterdir()} == {".bin", ".xml", ".json"}


# ---- the recipe


@pytest.mark.parametrize("field", ["text", "prompts"])
@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "texts/../../secret", "link", "folder/secret", "\0"])
def test_a_recipe_reads_its_own_files_only(tmp_path: Path, tiny_checkpoint: Path, field: str, name: str) -> None:
    folder = tmp_path / "recipes"
    (folder / "texts").mkdir(parents=True)
    (tmp_path / "secret").write_text("prompts: []")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    path = write_tiny_recipe(folder, tiny_checkpoint)
    data = yaml.safe_load(path.read_text())
    data["validation"][field] = name
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(RecipeError, match=r"is not in .* or below|is no name of a file"):
        load_recipe(path)


def test_a_recipe_makes_no_objects(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "recipe.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(path)
    assert not mark.exists()


# ---- keys


def ask_with(settings: Serving, headers: dict[str, str]) -> int:
    """Ask a guarded application that answers everything with 204."""
    from tasks.serving.guard import Guard
    from tasks.serving.observe import Observer

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def asked() -> int:
        observer = Observer(log_prompts=False, trace_share=0)
        transport = httpx.ASGITransport(Guard(answers, settings=settings, observer=observer, served=lambda: None))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.get("/v1/models", headers=headers)).status_code

    return asyncio.run(asked())


def test_a_key_that_leaked_is_taken_away_and_no_other() -> None:
    keys = {owner: f"vf-{owner}-key" for owner in ("web", "web_2", "batch")}
    hashed = {owner: hashlib.sha256(key.encode()).hexdigest() for owner, key in keys.items()}
    before = Serving(api_keys=hashed)
    after = Serving(api_keys={owner: digest for owner, digest in hashed.items() if owner != "web"})
    bearer = {owner: {"Authorization": f"Bearer {key}"} for owner, key in keys.items()}
    assert [ask_with(before, bearer[owner]) for owner in keys] == [204, 204, 204]
    assert [ask_with(after, bearer[owner]) for owner in keys] == [401, 204, 204]
    assert ask_with(after, {"Authorization": f"Bearer {hashed['batch']}"}) == 401, "a leaked hash opens nothing"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "model.example.com"])
def test_other_machines_are_not_let_in_without_keys(host: str) -> None:
    with pytest.raises(ValueError, match="open to other machines and api_keys is empty"):
        Serving(host=host)


# ---- secrets


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_TOKEN", "hf_planted-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/secret+key=")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:pl%40nted-word@mlflow.example.com/x")
    monkeypatch.setenv("PREFECT_API_URL", "http://bob:planted-api@127.0.0.1:4200/api")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.usefixtures("planted")
def test_passwords_leave_urls_for_the_variables_that_are_made_for_them() -> None:
    secrecy.keep()
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "pl@nted-word")
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert os.environ["PREFECT_API_AUTH_STRING"] == "bob:planted-api"


@pytest.mark.usefixtures("planted")
def test_logs_and_tracebacks_have_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    secrecy.keep()
    log = logging.getLogger("tests.secrets")
    try:
        try:
            raise OSError("https://bob:planted-api@host says no to hf_planted-token")
        except OSError as error:
            raise ValueError("pl@nted-word") from error
    except ValueError:
        log.exception("it failed with %s", "planted/secret+key=")
    assert "it failed with ***" in caplog.text and "https://host says no to ***" in caplog.text
    for secret in ("planted-api", "hf_planted", "pl@nted", "planted/secret"):
        assert secret not in caplog.text
    log.warning("%s of %s", "nothing", "secret")
    assert caplog.records[-1].args == ("nothing", "secret"), "what has no secret is left as it is"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40))
def test_no_password_of_a_url_is_told_however_it_is_written(password: str) -> None:
    for written in {quote(password, safe=""), quote(password, safe="!$&'()*+,;=:")}:
        url = f"https://user:{written}@host.example/path"
        assert secrecy.without_secrets(f"cannot reach {url}: refused") == (
            "cannot reach https://host.example/path: refused"
        )
        assert secrecy.has_secret(url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_TOKEN", password)
        said = secrecy.without_secrets(f"a {password} b {quote(password, safe='')}")
    assert said == "a *** b ***"


@pytest.mark.parametrize(
    "url",
    [
        "https://ann:secret@host/rows.jsonl",
        "s3://key:secret@bucket/rows.jsonl",
        "https://bucket.example/rows.jsonl?X-Amz-Credential=a&X-Amz-Signature=secret",
        "https://store.example/rows.jsonl?sv=1&sig=secret",
        "https://host/rows.jsonl?api_key=secret",
    ],
)
def test_a_batch_takes_no_url_with_a_secret(url: str) -> None:
    """It would stand in the journal, in MLflow and in Prefect."""
    for source, output in ((url, "out.jsonl"), ("in.jsonl", url)):
        with pytest.raises(BatchError, match="password or a signature") as caught:
            plan(source, output, "tiny/1", Batch())
        assert "=secret" not in str(caught.value) and ":secret" not in str(caught.value)


def test_a_batch_takes_other_urls() -> None:
    refuse_secrets("s3://bucket/a@b.jsonl", "in/*.jsonl", "sftp://ann@host/rows?part=1", "rows?sign=1.csv", "a@b:c.csv")


@pytest.mark.slow
def test_the_command_tells_no_secret_even_of_a_bug(home: Path, tmp_path: Path) -> None:
    code = (
        "from flows import cli\nfrom flows.commands import looking\n"
        "def bug(*_, **__): raise ZeroDivisionError('https://ann:pl%40nted-word@host and hf_planted-token')\n"
        "import tasks.registry\ntasks.registry.list_versions = bug\n"
        "import sys; sys.argv = ['vinoflow', 'list']\ncli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "HF_TOKEN": "hf_planted-token"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError: https://host and ***" in done.stderr
    assert "nted" not in done.stderr


# ---- the libraries


class Advisories(BaseHTTPRequestHandler):
    """A service of known vulnerabilities, which knows one of jinja2."""

    known = False

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fault = {
            "id": "GHSA-test",
            "schema_version": "1.7.0",
            "summary": "A fault",
            "affected": [
                {
                    "package": {"name": "jinja2", "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}],
                }
            ],
        }
        found = {"vulns": [fault]} if type(self).known and asked["package"]["name"] == "jinja2" else {}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Keep the tests' output clean."""


def audit(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_audit_fails_for_what_is_known_and_says_where_nobody_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{service.server_address[1]}/"
        try:
            good = audit("--osv-url", url)
            monkeypatch.setattr(Advisories, "known", True)
            bad = audit("--osv-url", url)
            ignored = audit("--osv-url", url, "--ignore-vuln", "GHSA-test")
        finally:
            service.shutdown()
            thread.join()
    assert good.returncode == 0 and "known faults: 0" in good.stdout
    assert bad.returncode == 1 and re.search(r"jinja2 \S+ has GHSA-test; fixed in 99\n", bad.stdout)
    assert ignored.returncode == 0
    silent = audit("--osv-url", url)
    assert silent.returncode == 0
    assert silent.stdout == "audit: NOT DONE, 127.0.0.1 does not answer; `make audit` does it where it does\n"
    wrong = audit("--no-such-option")
    assert wrong.returncode != 0 and "pip-audit failed" in wrong.stdout
