"""The alias moves while clients ask: no request notices, and what is broken never answers."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tasks.engine import Request
from tasks.manifest import build_manifest, write_manifest
from tasks.records import ExportedModel, ModelVersion
from tasks.registry import pull
from tasks.serving.follower import backoff_s
from tests import small
from tests.serving import EXACT, Served, home_of, point, register_and_ask, register_version, serving, variant

pytestmark = pytest.mark.slow
CLIENTS, REQUESTS = 16, 500
PROMPTS = [f"Question number {number}" for number in range(12)]
NEW_TOKENS = 10
RECIPE = small.recipe("tiny")


@dataclass
class Versions:
    """Registered versions, and what each answers to each of PROMPTS."""

    good: list[ModelVersion]
    broken: dict[str, ModelVersion]
    answers: dict[str, list[str]]


@pytest.fixture(scope="module")
def versions(tiny_export: ExportedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versions]:
    folder = tmp_path_factory.mktemp("versions")
    with home_of(folder):
        good, answers = [], {}
        asked = [Request(messages=({"role": "user", "content": text},), max_new_tokens=NEW_TOKENS) for text in PROMPTS]
        for seed in range(8):
            model = variant(tiny_export, folder / f"good-{seed}", seed)
            version, said = register_and_ask(model, RECIPE, folder, ov_config=EXACT, asked=asked)
            good.append(version)
            answers[version.reference] = said
        assert len({tuple(texts) for texts in answers.values()}) == len(good)  # each can be told by its answers
        yield Versions(good, _broken(tiny_export, folder), answers)


def _broken(tiny_export: ExportedModel, folder: Path) -> dict[str, ModelVersion]:
    registered = partial(register_version, recipe=RECIPE, folder=folder, ov_config=EXACT)

    damaged = registered(variant(tiny_export, folder / "damaged", 100))
    with (pull(damaged.reference).path / "openvino_model.bin").open("r+b") as file:  # a link to the store's own file
        file.write(b"\0" * 64)
    unloadable = variant(tiny_export, folder / "unloadable", 101)
    (unloadable.path / "openvino_model.xml").write_text("<net>")
    manifest = build_manifest(unloadable.path)
    write_manifest(unloadable.path, manifest)
    unloadable = unloadable.model_copy(update={"digest": manifest.digest})
    return {
        "damaged": damaged,
        "unloadable": registered(unloadable, answering=tiny_export.path),
        "otherwise": registered(variant(tiny_export, folder / "otherwise", 102), lies=True),
    }


class Clients:
    """Threads that ask until they are told to stop; each answer is checked against the version that it names."""

    def __init__(self, url: str, answers: dict[str, list[str]]) -> None:
        self.url = url
        self.answers = answers
        self.stop = threading.Event()
        self.wrong: list[str] = []
        self.by_version: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def asked(self) -> int:
        return sum(self.by_version.values())

    def run(self, seed: int) -> None:
        chosen = random.Random(seed)
        with httpx.Client(timeout=120) as client:
            while not self.stop.is_set():
                self._ask(client, chosen)
                time.sleep(chosen.random() * 0.1)

    def _ask(self, client: httpx.Client, chosen: random.Random) -> None:
        place, stream = chosen.randrange(len(PROMPTS)), chosen.random() < 0.5
        content = {
            "model": "tiny",
            "messages": [{"role": "user", "content": PROMPTS[place]}],
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "stream": stream,
        }
        try:
            answer = client.post(f"{self.url}/v1/chat/completions", json=content)
            version, text, fingerprint = answer.headers.get("x-vinoflow-version"), "", set()
            if stream:
                lines = [line for line in answer.text.splitlines() if line]
                assert lines[-1] == "data: [DONE]", answer.text
                for line in lines[:-1]:
                    chunk = json.loads(line.removeprefix("data: "))
                    text += chunk["choices"][0]["delta"].get("content", "")
                    fingerprint.add(chunk["system_fingerprint"])
            else:
                text, fingerprint = (
                    answer.json()["choices"][0]["message"]["content"],
                    {answer.json()["system_fingerprint"]},
                )
            assert answer.status_code == 200 and version is not None
            assert text == self.answers[version][place]
            assert fingerprint == {f"{version}-{answer.headers['x-vinoflow-digest'][:12]}"}
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
            return
        with self._lock:
            self.by_version[version] = self.by_version.get(version, 0) + 1


def health(url: str) -> dict[str, object]:
    return dict(httpx.get(f"{url}/health/ready", timeout=60).json())


def until(condition: Callable[[], bool], server: Served) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        time.sleep(0.05)


class Memory(threading.Thread):
    """The peak of all processes of a server."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak, self.over = psutil.Process(pid), 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            try:
                tree = [self.root, *self.root.children(recursive=True)]
                self.peak = max(self.peak, sum(process.memory_info().rss for process in tree))
            except psutil.Error:
                continue


def test_500_requests_across_10_swaps_3_of_them_to_broken_versions(versions: Versions, tmp_path: Path) -> None:
    point(versions.good[0])
    good = iter(versions.good[1:])
    kinds = ["good", "good", "damaged", "good", "unloadable", "good", "good", "otherwise", "good", "good"]
    with (
        serving("tiny@champion", tmp_path, poll_s=0.2, retry_s=0.5) as server,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        memory = Memory(server.process.pid)
        memory.start()
        clients = Clients(server.url, versions.answers)
        running = [pool.submit(clients.run, seed) for seed in range(CLIENTS)]
        try:
            for step, kind in enumerate(kinds, 1):
                before = health(server.url)["version"]
                target = next(good) if kind == "good" else versions.broken[kind]
                point(target)
                if kind == "good":
                    until(lambda target=target: health(server.url)["version"] == target.reference, server)
                else:
                    until(lambda target=target: _failed(server.url, target), server)
                    found = health(server.url)
                    assert found["ready"] and found["version"] == before
                    until(lambda: _metric(server.url, "vinoflow_swap_failed") == 1, server)
                until(lambda step=step: clients.asked >= REQUESTS * step / len(kinds) or bool(clients.wrong), server)
            until(lambda: target.reference in clients.by_version or bool(clients.wrong), server)
        finally:
            clients.stop.set()
            for one in running:
                one.result()
            memory.over.set()
        assert clients.wrong == []
        assert clients.asked >= REQUESTS
        assert set(clients.by_version) == {version.reference for version in versions.good}
        assert _metric(server.url, 'vinoflow_swaps_total{result="done"}') == 7
        assert _metric(server.url, 'vinoflow_swaps_total{result="failed"}') >= 3
        until(lambda: len(psutil.Process(server.process.pid).children()) == 1, server)  # the old engines are gone
        print(f"{clients.asked} requests, {clients.by_version}, peak of all processes {memory.peak / 1e6:.0f} MB")


def test_where_memory_does_not_hold_two_requests_wait(versions: Versions, tmp_path: Path) -> None:
    point(versions.good[0])
    with (
        serving("tiny@champion", tmp_path, poll_s=0.2, retry_s=0.5, swap="stop-first") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        clients = Clients(server.url, versions.answers)
        running = [pool.submit(clients.run, seed) for seed in range(4)]
        engines: set[int] = set()
        try:
            for target in (versions.good[1], versions.broken["otherwise"], versions.good[2]):
                point(target)
                bad = target is versions.broken["otherwise"]
                wanted = (lambda t=target: _failed(server.url, t)) if bad else (lambda t=target: _serves(server.url, t))

                def seen(wanted: Callable[[], bool] = wanted) -> bool:
                    engines.add(len(psutil.Process(server.process.pid).children()))
                    return wanted()

                until(seen, server)
        finally:
            clients.stop.set()
            for one in running:
                one.result()
        assert clients.wrong == []
        assert {version.reference for version in versions.good[:3]} >= set(clients.by_version)
        assert max(engines) == 1


def test_tries_come_at_longer_and_longer_intervals_for_ever() -> None:
    waits = [backoff_s(attempts, first=5, most=300) for attempts in (1, 2, 3, 7, 5000)]
    assert waits == [5, 10, 20, 300, 300]


def _serves(url: str, target: ModelVersion) -> bool:
    return health(url)["version"] == target.reference


def _failed(url: str, target: ModelVersion) -> bool:
    swap = health(url)["swap"]
    return isinstance(swap, dict) and (swap["state"], swap["target"]) == ("failed", target.reference)


def _metric(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)
