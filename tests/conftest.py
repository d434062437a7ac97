"""What the tests share: a cache for what is slow, and stores of their own for what they change."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tasks import telemetry
from tasks.config import Export, LocalSource, Recipe
from tasks.download import download
from tasks.export import UNCOMPRESSED, export
from tasks.recipe_file import load_recipe
from tasks.records import Checkpoint, ExportedModel
from tasks.registry import connect
from tests import servers
from tests.forked import Forker, forker
from tests.gpu_shim import build as gpu_shim
from tests.tiny import make_tiny

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "smollm2-135m-instruct.yaml"
telemetry.turn_off()

SLOW_FIXTURES = {
    "smollm2",
    "smollm2_checkpoint",
    "smollm2_export",
    "smollm2_floor",
    "smollm2_int8",
    "tiny_export",
    "seeded",
    "real",
    "exports",
    "served",
    "tiny_served",
}
# gates that random weights cannot pass: switched off in the recipes of tiny models
SAID_BY_NOISE = ("empty_answers", "looping_answers", "malformed_answers", "long_prompt_faults")
Vinoflow = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses an export as slow, and run the fast tests first: what is broken should be told in seconds.

    Of the slow ones those of whole jobs begin: a file of them that began last would run alone.
    """
    for item in items:
        if not SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    parts = {"tasks", "flows"}  # the folders of tests of one part
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None, not parts.isdisjoint(item.path.parts)))


@pytest.fixture(scope="session")
def shared_cache() -> Path:
    """The cache that outlives a session: the real model's checkpoint and export are made once."""
    folder = os.environ.get("VINOFLOW_TEST_CACHE") or Path.home() / ".cache" / "vinoflow-tests"
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load_recipe(RECIPE)


@pytest.fixture(scope="session")
def quick_recipe(recipe: Recipe) -> Recipe:
    """The embedded model's recipe and gates with half of the prompts, a quarter of the text and no noise floor."""
    known = recipe.validation
    less = {
        "rounds": 2,
        "max_new_tokens": 64,
        "prompts": known.prompts[::2],
        "text": known.text[:9000],
        "noise_floor": False,
        "gates": {name: gate for name, gate in known.gates.items() if name != "noise_floor_kl_mean"},
    }
    return recipe.model_copy(update={"validation": known.model_copy(update=less)})


@pytest.fixture(scope="session")
def smollm2(shared_cache: Path, recipe: Recipe) -> Checkpoint:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_CACHE", str(shared_cache))
        return download(recipe.source)


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2: Checkpoint) -> Path:
    return smollm2.path


@pytest.fixture(scope="session")
def smollm2_export(shared_cache: Path, smollm2: Checkpoint, recipe: Recipe) -> ExportedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_CACHE", str(shared_cache))
        return export(smollm2, recipe.export)


@pytest.fixture(scope="session")
def smollm2_floor(shared_cache: Path, smollm2: Checkpoint) -> ExportedModel:
    """The real model exported without compression."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_CACHE", str(shared_cache))
        return export(smollm2, UNCOMPRESSED)


@pytest.fixture(scope="session")
def smollm2_int8(shared_cache: Path, smollm2: Checkpoint) -> ExportedModel:
    """The real model in int8, as the tutorial exports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_CACHE", str(shared_cache))
        return export(smollm2, Export(weight_format="int8"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A vinoflow home and cache of the test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("VINOFLOW_HOME", str(folder))
    monkeypatch.setenv("VINOFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    yield folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without a row of ours."""
    folder = tmp_path_factory.mktemp("empty-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_HOME", str(folder))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        connect()
    return folder / "mlruns" / "mlflow.db"


@pytest.fixture
def with_store(home: Path, empty_store: Path) -> None:
    """MLflow's tables in the test's home: they take a second to make, and a test's subject is mostly another."""
    lay(empty_store, home / "mlruns" / "mlflow.db")


@pytest.fixture(scope="session")
def prefect_tables(shared_cache: Path) -> Path:
    """What Prefect's server makes when it first starts, in five seconds."""
    made = shared_cache / f"prefect-{version('prefect')}.db"
    if not made.exists():
        shared_cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=shared_cache) as folder:
            with servers.prefect(Path(folder) / "server"):
                pass
            whole = Path(folder) / made.name  # what is in the write-ahead log too
            with closing(sqlite3.connect(Path(folder) / "server" / "prefect.db")) as database:
                database.execute("VACUUM INTO ?", (str(whole),))
            whole.replace(made)
    return made


@pytest.fixture
def with_prefect(home: Path, prefect_tables: Path) -> None:
    """Prefect's tables in the test's home."""
    lay(prefect_tables, home / "mlruns" / "prefect.db")


def lay(database: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    shutil.copy(database, target)


@pytest.fixture
def seeded(
    home: Path,
    with_prefect: None,
    tmp_path: Path,
    smollm2_export: ExportedModel,
    smollm2_floor: ExportedModel,
    shared_cache: Path,
) -> Iterator[Path]:
    """The test's own home, its cache linked to the real model's checkpoint and exports, and to what the source said."""
    link_tree(shared_cache / "checkpoints", tmp_path / "cache" / "checkpoints")
    for exported in (smollm2_export, smollm2_floor):
        link_tree(exported.path, tmp_path / "cache" / "models" / exported.digest)
    kept, references = shared_cache / "references", tmp_path / "cache" / "references"
    kept.mkdir(exist_ok=True)
    link_tree(kept, references)
    for record in (shared_cache / "exports").glob("*.json"):
        text = record.read_text().replace(str(shared_cache), str(tmp_path / "cache"))
        target = tmp_path / "cache" / "exports" / record.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    yield home
    link_tree(references, kept)  # for the next test


def link_tree(source: Path, target: Path) -> None:
    """Copy what a folder has and the other lacks, with links in place of copies where the file system can."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except FileExistsError:
            return
        except OSError:
            shutil.copy2(one, other)

    left = shutil.ignore_patterns("*.lock", "*.partial", ".staging-*")
    shutil.copytree(source, target, copy_function=link, ignore=left, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def shim_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return gpu_shim.build(tmp_path_factory.mktemp("gpu-shim"))


@pytest.fixture
def gpu(shim_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The test's children find GPU.0, a CPU in a GPU's name; set tests.gpu_shim.build.FAULT to break it."""
    for name, value in shim_environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def vinoflow(home: Path, with_prefect: None) -> Vinoflow:
    """Run the real command in a process of its own, in the test's home."""

    def run(*arguments: str | Path, expect: int = 0, timeout: float = 600, **environment: str) -> object:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run  # type: ignore[return-value]


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with forker(tmp_path_factory.mktemp("forked") / "forker") as one:
        yield one


@pytest.fixture
def quick(home: Path, forked: Forker) -> Vinoflow:
    """The same in a fork of a process that has imported everything: for commands that start no Prefect."""

    def run(*arguments: str | Path, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = forked.run(*arguments, **environment)
        assert done.code == expect, f"exit code {done.code}\n{done.out}\n{done.err}"
        return subprocess.CompletedProcess(arguments, done.code, done.out, done.err)

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VINOFLOW_CACHE", str(tmp_path_factory.mktemp("tiny-cache")))
        checkpoint = download(LocalSource(kind="local", path=tiny_checkpoint))
        return export(checkpoint, Export(weight_format="int4", group_size=32, ratio=0.6, sym=True))


@pytest.fixture
def tiny_recipe(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A recipe for the tiny llama, whose answers are noise: only their form is checked."""
    return write_tiny_recipe(tmp_path, tiny_checkpoint)


def write_tiny_recipe(folder: Path, checkpoint: Path, *, name: str = "tiny", **expect: object) -> Path:
    path = folder / f"{name}.yaml"
    data = {
        "name": name,
        "source": {"kind": "local", "path": str(checkpoint)},
        "export": {"weight_format": "int4", "group_size": 32, "ratio": 0.6, "sym": True},
        "validation": {
            "device": "CPU",
            "max_new_tokens": 8,
            "reference": "none",
            "rounds": 2,
            "concurrency": 2,
            "gates": dict.fromkeys(SAID_BY_NOISE),
            "prompts": [{"id": "hello", "messages": [{"role": "user", "content": "Hello"}], "expect": expect}],
        },
    }
    path.write_text(yaml.safe_dump(data))
    return path
