"""The server against the bare engine: the same prompts by 1, 8 and 32 streaming clients; and its memory over time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import psutil
import pytest

from tasks.config import Recipe
from tasks.records import ExportedModel
from tests.benchmarks.bench_answers import chats
from tests.benchmarks.measure import run
from tests.benchmarks.serving_ways import CLIENTS, NEW_TOKENS
from tests.benchmarks.table import ratios, show
from tests.serving import give, home_of, register_version, serving

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
ROUNDS = 5
REQUESTS, LOOKS = 5000, 10


@pytest.fixture(scope="module")
def folder(smollm2_export: ExportedModel, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose champion is the real model."""
    folder = tmp_path_factory.mktemp("served")
    with home_of(folder):
        give(register_version(smollm2_export, recipe, folder))
        yield folder


def test_speed_against_the_bare_engine(
    folder: Path, smollm2_export: ExportedModel, recipe: Recipe, tmp_path: Path
) -> None:
    given = tmp_path / "prompts.json"
    given.write_text(json.dumps(chats(recipe, smollm2_export.path)))

    def measured(way: str, where: object) -> dict[str, Any]:
        done = run([sys.executable, "-m", "tests.benchmarks.serving_ways", way, where, given])
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def bare() -> dict[str, Any]:
        return measured("bare", smollm2_export.path)

    def served() -> dict[str, Any]:
        with serving(f"{recipe.name}@champion", tmp_path) as server:  # a new one, with nothing in its prefix cache
            return measured("served", server.url)

    found: dict[str, list[dict[str, Any]]] = {"bare": [], "served": []}
    for number in range(ROUNDS):
        for way in (bare, served) if number % 2 == 0 else (served, bare):
            found[way.__name__].append(way())
    show(
        f"Streaming clients, at most {NEW_TOKENS} tokens an answer ({ROUNDS} rounds; served / bare, above 1 is faster)",
        (
            "clients",
            "bare tokens/s",
            "served tokens/s",
            "ratio",
            "TTFT p50 bare / served, ms",
            "TTFT p99 bare / served, ms",
        ),
        [_row(str(clients), found) for clients in CLIENTS],
    )


def _row(clients: str, found: dict[str, list[dict[str, Any]]]) -> tuple[str, ...]:
    speed = {way: [one[clients]["tokens_s"] for one in rounds] for way, rounds in found.items()}
    first = {
        way: quantiles([ttft for one in rounds for ttft in one[clients]["ttft_ms"]], n=100)
        for way, rounds in found.items()
    }
    return (
        clients,
        f"{median(speed['bare']):.0f}",
        f"{median(speed['served']):.0f}",
        ratios(speed["served"], speed["bare"]),
        f"{first['bare'][49]:.0f} / {first['served'][49]:.0f}",
        f"{first['bare'][98]:.0f} / {first['served'][98]:.0f}",
    )


def test_memory_over_5000_requests(folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    looks = []
    with (
        serving(f"{recipe.name}@champion", tmp_path) as server,
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=32)) as client,
        ThreadPoolExecutor(32) as pool,
    ):

        def ask(number: int) -> int:
            stream = number % 2 == 0
            content = {
                "model": recipe.name,
                "messages": [{"role": "user", "content": f"Question {number}: {'and ' * (number % 60)}so?"}],
                "max_tokens": 4 + number % 13,
                "stream": stream,
            }
            answer = client.post(f"{server.url}/v1/chat/completions", json=content)
            assert not stream or answer.text.endswith("data: [DONE]\n\n")
            return answer.status_code

        for look in range(LOOKS + 1):
            each = REQUESTS // LOOKS
            numbers = range(look * each, (look + 1) * each) if look < LOOKS else ()
            process = psutil.Process(server.process.pid)
            engine = max(process.children(), key=lambda child: child.memory_info().rss)
            looks.append((look * each, process.memory_info().rss / 1e6, engine.memory_info().rss / 1e6))
            assert set(pool.map(ask, numbers)) <= {200}
    show(
        f"Memory over {REQUESTS} requests of 32 clients",
        ("requests", "server RSS, MB", "engine RSS, MB"),
        [(str(count), f"{one:.0f}", f"{other:.0f}") for count, one, other in looks],
    )
