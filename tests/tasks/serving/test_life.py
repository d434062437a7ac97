"""What a server lives through: engines that die, clients that go, crowds, deadlines, the signal to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import ROOT
from tests.serving import Served, home_of, serving

pytestmark = pytest.mark.slow
NAME = "smollm2-135m-instruct"
LONG = "Write a long story about a lighthouse keeper."


@pytest.fixture(scope="module")
def server(real_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("life")
    with home_of(real_home), serving(f"{NAME}@champion", folder, max_running=2, max_waiting=2) as server:
        yield server


def asked(text: str = "Hello", **settings: object) -> dict[str, object]:
    return {"model": NAME, "messages": [{"role": "user", "content": text}], **settings}


def post(server: Served, **settings: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=asked(**settings), timeout=120)


def health(server: Served) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/health/ready", timeout=60).json())


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def engine_of(server: Served) -> psutil.Process:
    (engine,) = (
        child for child in psutil.Process(server.process.pid).children() if "tasks.engine.worker" in child.cmdline()
    )
    return engine


def long_stream(server: Served, **settings: object) -> Any:
    content = asked(LONG, max_tokens=800, stream=True, temperature=0, **settings)
    return httpx.stream("POST", f"{server.url}/v1/chat/completions", json=content, timeout=120)


def test_a_killed_engine_comes_back_and_requests_wait_for_it(server: Served) -> None:
    before = health(server)["restarts"]
    expected = post(server, text=LONG, max_tokens=120, temperature=0).json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(3) as pool, long_stream(server) as stream:
        lines = stream.iter_lines()
        for _ in range(8):
            next(lines)  # this one has streamed something
        whole = pool.submit(post, server, text=LONG, max_tokens=120, temperature=0)
        until(lambda: health(server)["running"] == 2, "the second request did not start")
        waiting = pool.submit(post, server, text="Hi", max_tokens=4)
        until(lambda: health(server)["waiting"] == 1, "the third request does not wait")
        engine_of(server).send_signal(signal.SIGKILL)
        rest = [line for line in lines if line]
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("engine_stopped", "server_error")
        assert waiting.result().status_code == 200
        again = whole.result()
    assert again.status_code == 200
    assert again.json()["choices"][0]["message"]["content"][:40] == expected[:40]
    assert health(server)["restarts"] == before + 1
    assert health(server)["ready"]


def test_an_engine_that_dies_again_and_again_gives_up_the_request_not_the_server(server: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        doomed = pool.submit(post, server, text=LONG, max_tokens=2000)
        for _ in range(3):
            until(lambda: health(server)["ready"] and health(server)["running"] == 1, "the request is not under way")
            time.sleep(0.3)
            engine_of(server).kill()
            until(lambda: not health(server)["ready"] or doomed.done(), "the death was not noticed")
        answer = doomed.result()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_stopped"
    until(lambda: health(server)["ready"], "the server did not recover")
    assert post(server, max_tokens=2).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place_at_once(server: Served, stream: bool) -> None:
    body = json.dumps(asked(LONG, max_tokens=4000, stream=stream)).encode()
    host, port = server.url.removeprefix("http://").split(":")
    used = engine_of(server).cpu_times().user
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: health(server)["running"] == 1, "it did not start")
        if stream:
            connection.recv(1000)
    until(lambda: health(server)["running"] == 0, "its place was not freed")
    time.sleep(0.3)
    idle = engine_of(server).cpu_times().user
    time.sleep(0.5)
    assert engine_of(server).cpu_times().user - idle < 0.3, used  # the engine generates no more
    until(lambda: any(line["status"] == 499 for line in server.requests), "the log does not tell")


def test_too_many_are_turned_away_and_told_when_to_come_back(server: Served) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, server, text=LONG, max_tokens=150, temperature=0) for _ in range(8)]
        found = [answer.result() for answer in answers]
    codes = sorted(answer.status_code for answer in found)
    assert codes == [200] * 4 + [429] * 4
    turned_away = next(answer for answer in found if answer.status_code == 429)
    assert 1 <= int(turned_away.headers["retry-after"]) <= 60
    assert turned_away.json()["error"]["code"] == "queue_full"
    assert turned_away.headers["x-vinoflow-version"] == f"{NAME}/1"
    more = post(server, n=3)
    assert more.status_code == 400 and "2 can be generated at once" in more.json()["error"]["message"]


def metrics(server: Served) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_tell_what_happened(server: Served) -> None:
    before = metrics(server)
    assert [post(server, max_tokens=5).status_code for _ in range(2)] == [200, 200]
    assert httpx.post(f"{server.url}/v1/chat/completions", json=asked() | {"model": "other"}).status_code == 404
    after = metrics(server)
    for name, more in {
        'vinoflow_requests_total{path="/v1/chat/completions",status="200"}': 2,
        'vinoflow_rejections_total{reason="model_not_found"}': 1,
        "vinoflow_completion_tokens_total": 10,
        "vinoflow_ttft_seconds_count": 2,
        "vinoflow_tpot_seconds_count": 2,
    }.items():
        assert after[name] - before.get(name, 0) == more, name
    assert after["vinoflow_engine_restarts"] == health(server)["restarts"]
    assert after["vinoflow_engine_peak_rss_bytes"] > 1e8
    assert after["vinoflow_ready"] == 1
    model = next(name for name in after if name.startswith("vinoflow_model{"))
    assert f'model="{NAME}"' in model and server.ready["digest"] in model


def test_the_request_log_has_no_word_of_the_prompts(server: Served) -> None:
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        json=asked("A secret word: xylophone", max_tokens=3, user="ann"),
        headers={"X-Request-ID": "my-request-1"},
        timeout=60,
    )
    assert answer.headers["x-request-id"] == "my-request-1"
    until(lambda: "my-request-1" in server.log.read_text(), "the log has no line of it")
    line = next(line for line in server.requests if line["request"] == "my-request-1")
    assert line["user"] == "ann"
    assert line["version"] == f"{NAME}/1" and line["digest"] == server.ready["digest"]
    assert line["completion_tokens"] == 3 and line["finish"] == ["length"] and line["ttft_ms"] > 0
    assert "xylophone" not in server.log.read_text()


def test_deadlines_logged_prompts_and_traces(real_home: Path, tmp_path: Path) -> None:
    settings = {"deadline_s": 1.0, "log_prompts": True, "trace_share": 1.0, "max_request_tokens": 500}
    with home_of(real_home), serving(f"{NAME}/1", tmp_path, **settings) as server:
        late = post(server, text=LONG, max_tokens=440, n=8, temperature=1)
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "deadline_exceeded"
        content = asked(LONG, max_tokens=440, n=8, temperature=1, stream=True)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=content, timeout=60) as stream:
            last = [line for line in stream.iter_lines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        limit = post(server, max_tokens=600)
        assert limit.status_code == 400 and "may have 500" in limit.json()["error"]["message"]
        assert post(server, text="A word: xylophone", max_tokens=3).status_code == 200
        until(
            lambda: any("xylophone" in str(line.get("prompt")) and line["answers"] for line in server.requests),
            "the log has no prompt",
        )
        assert health(server)["swap"]["state"] == "fixed"
        from tasks.registry import connect

        client = connect()

        def traced() -> bool:
            experiment = client.get_experiment_by_name("vinoflow-serving")
            traces = client.search_traces(locations=[experiment.experiment_id]) if experiment else []
            return any("xylophone" in str(trace.data.spans[0].inputs) for trace in traces)

        until(traced, "no trace was kept")


def test_a_client_may_say_how_long_it_waits(server: Served) -> None:
    def within(seconds: str) -> httpx.Response:
        content = asked(LONG, max_tokens=2000)
        headers = {"x-vinoflow-within-s": seconds}
        return httpx.post(f"{server.url}/v1/chat/completions", json=content, headers=headers, timeout=60)

    assert within("0.5").json()["error"]["code"] == "deadline_exceeded"
    for wrong in ("0", "soon", "nan"):
        assert within(wrong).status_code == 400
        assert within(wrong).json()["error"]["param"] == "x-vinoflow-within-s"


def test_keys_open_the_server_and_nothing_else_does(real_home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "api-key", "ann", "--json"]
    made = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    certificate = _certificate(tmp_path)
    settings = {"api_keys": {"ann": made["sha256"]}, "host": "0.0.0.0", **certificate}
    with home_of(real_home), serving(f"{NAME}@champion", tmp_path, **settings) as server:
        assert server.url.startswith("https://0.0.0.0:")
        url = server.url.replace("0.0.0.0", "localhost")
        trusted = ssl.create_default_context(cafile=certificate["ssl_certfile"])
        with httpx.Client(verify=trusted, base_url=url, timeout=60) as client:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {made['key']}"}):
                for path in ("/v1/models", "/metrics", "/openapi.json"):
                    refused = client.get(path, headers=headers)
                    assert refused.status_code == 401
                    assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get("/").status_code == client.get("/health/live").status_code == 200
            key = {"Authorization": f"Bearer {made['key']}"}
            assert client.get("/v1/models", headers=key).status_code == 200
            assert client.post("/v1/chat/completions", json=asked(max_tokens=2), headers=key).status_code == 200
        until(lambda: server.requests[-1].get("client") == "ann", "the log does not say whose key it was")
        assert made["key"] not in server.log.read_text()


def _certificate(folder: Path) -> dict[str, str]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}


def test_a_stranger_s_page_does_not_reach_a_server_without_keys(server: Served) -> None:
    body = json.dumps(asked(max_tokens=2))
    rebound = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=body,
        headers={"Host": "evil.example:8000", "Content-Type": "application/json"},
    )
    assert rebound.status_code == 400 and rebound.json()["error"]["code"] == "wrong_host"
    simple = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"})
    assert simple.status_code == 415


def test_sigterm_lets_requests_end_and_takes_no_new_ones(real_home: Path, tmp_path: Path) -> None:
    with (
        home_of(real_home),
        serving(f"{NAME}@champion", tmp_path, drain_s=60) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        whole = pool.submit(post, server, text=LONG, max_tokens=150, temperature=0)
        with long_stream(server) as stream:
            lines = stream.iter_lines()
            next(lines)
            until(lambda: health(server)["running"] == 2, "the second request did not start")
            engine = engine_of(server).pid
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{server.url}/health/live")
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert whole.result().status_code == 200
        assert server.process.wait(timeout=30) == 0
        assert not psutil.pid_exists(engine)


def test_what_takes_longer_than_the_drain_is_told_so(real_home: Path, tmp_path: Path) -> None:
    with home_of(real_home), serving(f"{NAME}@champion", tmp_path, drain_s=0.2) as server:
        with long_stream(server) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert "shutting down" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert server.process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing@champion"], "no model 'nothing' is registered"),
        ([f"{NAME}@gone"], "has no alias 'gone'"),
        ([f"{NAME}/1", "--host", "0.0.0.0"], "make a key with `vinoflow api-key`"),
        ([f"{NAME}/1", "--device", "GPU.7"], "GPU.7"),
        ([f"{NAME}/1", "--device", "AUTO"], "AUTO may fall back"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(real_home: Path, arguments: list[str], words: str) -> None:
    with home_of(real_home):
        command = [sys.executable, "-m", "flows.cli", "serve", "--port", "0", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr and "\nerror: " in f"\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(server: Served, real_home: Path) -> None:
    port = server.url.rpartition(":")[2]
    with home_of(real_home):
        command = [sys.executable, "-m", "flows.cli", "serve", f"{NAME}/1", "--port", port]
        done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"port {port} cannot be listened on" in done.stderr
    assert "load" not in done.stderr
