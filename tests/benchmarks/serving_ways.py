"""The bare engine and the server, each given the same prompts by so many clients at once.

`python -m tests.benchmarks.serving_ways bare FOLDER PROMPTS.json` answers in this process;
`python -m tests.benchmarks.serving_ways served URL PROMPTS.json` asks a running server, streaming. Prints JSON:
per number of clients the tokens per second and the times to the first token in ms.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks import telemetry

NEW_TOKENS = 96
CLIENTS = {1: 12, 8: 64, 32: 160}  # with how many requests together


def bare(folder: str, prompts: list[str]) -> dict[int, dict[str, Any]]:
    """openvino-genai's continuous batching with the settings of our engine; as many in flight as there are clients."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens, scheduler.enable_prefix_caching = 512, True
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {})
    tokenizer, generation = pipeline.get_tokenizer(), pipeline.get_config()
    generation.do_sample, generation.max_new_tokens = False, NEW_TOKENS
    number = 0

    def answer(clients: int, requests: int) -> dict[str, Any]:
        nonlocal number
        running: dict[int, Any] = {}
        first, tokens, begun, started = [], 0, 0, time.perf_counter()
        while begun < requests or running:
            while begun < requests and len(running) < clients:
                ids = tokenizer.encode(prompts[begun % len(prompts)], add_special_tokens=False).input_ids
                running[number] = [pipeline.add_request(number, ids, generation), time.perf_counter(), []]
                number, begun = number + 1, begun + 1
            pipeline.step()
            for key, (handle, since, made) in list(running.items()):
                while handle.can_read():
                    if not made:
                        first.append((time.perf_counter() - since) * 1000)
                    made.extend(next(iter(handle.read().values())).generated_ids)
                if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                    tokenizer.decode(made)
                    tokens += len(made)
                    del running[key]
        return {"tokens_s": tokens / (time.perf_counter() - started), "ttft_ms": first, "tokens": tokens}

    answer(8, 8)  # what happens once a process is not what is measured
    return {clients: answer(clients, requests) for clients, requests in CLIENTS.items()}


class _Client(asyncio.Protocol):
    """Reads one stream of events: the time of its first text, and the number of tokens at its end."""

    def __init__(self) -> None:
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.first: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._end = b""

    def data_received(self, data: bytes) -> None:
        if not self.first.done() and b'"text":"' in data:
            self.first.set_result(time.perf_counter())
        self._end = (self._end + data)[-1000:]
        if b"data: [DONE]" in self._end and not self.done.done():
            usage = self._end.rpartition(b'"usage":')[2].partition(b"}")[0] + b"}"
            self.done.set_result(json.loads(usage)["completion_tokens"])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(self._end.decode(errors="replace")))


async def served(url: str, prompts: list[str]) -> dict[int, dict[str, Any]]:
    """The server, by its API: each client sends its next request when its last one is answered."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    loop = asyncio.get_running_loop()
    model = (await _models(host, port))["data"][0]["id"]

    async def ask(prompt: str) -> tuple[float, int]:
        asked = {"model": model, "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True}
        body = json.dumps({**asked, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        started = time.perf_counter()
        transport, client = await loop.create_connection(_Client, host, port)
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        tokens = await client.done
        transport.close()
        return (await client.first - started) * 1000, tokens

    async def answer(clients: int, requests: int) -> dict[str, Any]:
        waiting = iter([prompts[number % len(prompts)] for number in range(requests)])
        found: list[tuple[float, int]] = []

        async def one() -> None:
            for prompt in waiting:  # which all clients take from
                found.append(await ask(prompt))  # noqa: PERF401

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        tokens = sum(count for _, count in found)
        seconds = time.perf_counter() - started
        return {"tokens_s": tokens / seconds, "ttft_ms": [first for first, _ in found], "tokens": tokens}

    await answer(8, 8)
    return {clients: await answer(clients, requests) for clients, requests in CLIENTS.items()}


async def _models(host: str | None, port: int | None) -> Any:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def main() -> None:
    telemetry.turn_off()
    way, where, prompts = sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text())
    print(json.dumps(bare(where, prompts) if way == "bare" else asyncio.run(served(where, prompts))))


if __name__ == "__main__":
    main()
