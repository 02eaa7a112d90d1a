"""How a server starts, loses clients, refuses work and ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from live_server import LiveServer, serving
from starlette.testclient import TestClient

from lynx_rt.server.app import make_app
from lynx_rt.server.settings import Settings
from lynx_rt.server.state import ServerState

LONG = {"prompt": "The", "max_tokens": 1000, "ignore_eos": True}
PREFILL = {"prompt": [[7 + i % 100, *range(20, 1000)] for i in range(8)], "max_tokens": 20, "ignore_eos": True}


def request_bytes(body: dict, path: str = "/v1/completions") -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def connect(server: LiveServer) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port), timeout=30)


def wait_for(server: LiveServer, count: int) -> None:
    end = time.monotonic() + 10
    while server.num_sequences() < count:
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [LONG, PREFILL, {**LONG, "n": 3, "temperature": 1}], ids=["decode", "prefill", "n"])
def test_a_client_that_goes_ends_its_request(server: LiveServer, body: dict, stream: bool) -> None:
    with connect(server) as client:
        client.sendall(request_bytes({**body, "stream": stream}))
        wait_for(server, 1)
        if stream and body is LONG:
            client.recv(1000)
    server.wait_idle(5)
    assert server.complete(prompt="Q: 12 times 22 = ?\nA:", temperature=0)["choices"][0]["text"] == " 264"


def test_a_client_that_goes_while_it_waits(tmp_path: Path) -> None:
    """A waiting request ends, and the running one goes on."""
    with serving("--max-num-seqs", "1") as server:
        outcome: list = []
        body = {**LONG, "max_tokens": 400, "return_token_ids": True}
        runner = threading.Thread(target=lambda: outcome.append(server.complete(**body)))
        runner.start()
        wait_for(server, 1)
        with connect(server) as client:
            client.sendall(request_bytes(LONG))
            wait_for(server, 2)
        runner.join(60)
        assert len(outcome[0]["choices"][0]["token_ids"]) == 400
        server.wait_idle()


def test_a_thousand_clients_that_go(server: LiveServer) -> None:
    """In all states: before the body, in the queue, in prefill, in decode, in the middle of a chunk."""
    short = {**PREFILL, "prompt": PREFILL["prompt"][:2]}
    bodies = [LONG, {**LONG, "stream": True}, short, {**LONG, "n": 2, "temperature": 1, "stream": True}]
    for i in range(1000):
        with connect(server) as client:
            data = request_bytes(bodies[i % 4])
            client.sendall(data if i % 10 else data[: i % len(data)])
            if i % 3 == 0:
                client.settimeout(0.002)
                with contextlib.suppress(TimeoutError):
                    client.recv(100)
    server.wait_idle(60)
    end = time.monotonic() + 5
    while (state := server.client.get("/v1/lynx/state").json())["num_running"] + state["num_waiting"]:
        assert time.monotonic() < end, state
    assert state["kv_blocks_used"] == 0  # pages of the prefix cache count as free
    assert server.complete(prompt="Q: 12 times 22 = ?\nA:", temperature=0)["choices"][0]["text"] == " 264"


def test_a_client_that_does_not_read_is_dropped() -> None:
    with serving("--stall-timeout", "1") as server:
        with connect(server) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            body = {**LONG, "n": 32, "temperature": 1, "stream": True, "logprobs": 20}
            client.sendall(request_bytes(body))
            wait_for(server, 32)
            end = time.monotonic() + 30
            while server.num_sequences():
                assert time.monotonic() < end
                time.sleep(0.05)
        assert "has not read" in server.log()


def test_a_full_queue() -> None:
    with serving("--max-num-seqs", "1", "--max-num-queued-reqs", "1") as server:
        clients = [connect(server) for _ in range(2)]
        for client in clients:
            client.sendall(request_bytes(LONG))
        wait_for(server, 2)
        answer = server.post("/v1/completions", LONG)
        assert answer.status_code == 503 and 1 <= int(answer.headers["retry-after"]) <= 60
        error = answer.json()["error"]
        assert error["type"] == "overloaded_error" and error["queue_depth"] == 2
        for client in clients:
            client.close()
        server.wait_idle()
        assert server.complete(prompt="The", max_tokens=1)


def test_keys() -> None:
    with serving("--api-key", "a", "--api-key", "b", wait=False) as server:
        key = {"Authorization": "Bearer a"}
        server.wait_ready()
        for path in (
            "/v1/models",
            "/version",
            "/tokenizer_info",
            "/load",
            "/openapi.json",
            "/docs",
            "/metrics",
            "/nothing",
        ):
            answer = server.client.get(path)
            assert answer.status_code == 401 and "error" in answer.json(), path
        assert server.client.post("/v1/completions", json={}).status_code == 401
        assert server.client.get("/health").status_code == server.client.get("/ping").status_code == 200
        for headers in (key, {"x-api-key": "b"}, {"api-key": "a"}, {"authorization": "bearer b"}):
            assert server.client.get("/v1/models", headers=headers).status_code == 200
        for headers in ({"Authorization": "Bearer c"}, {"Authorization": "a"}, {"x-api-key": ""}, {"x-api-key": "ä"}):
            raw = {name: value.encode() for name, value in headers.items()}
            assert server.client.get("/v1/models", headers=raw).status_code == 401


def test_large_bodies() -> None:
    with serving("--max-body-bytes", "1000") as server:
        assert server.post("/v1/completions", {"prompt": "x" * 2000}).status_code == 413

        def chunks() -> object:
            yield from [b'{"prompt": "'] + [b"x" * 100] * 20

        answer = server.client.post("/v1/completions", content=chunks(), headers={"content-type": "application/json"})
        assert answer.status_code == 413 and answer.json()["error"]["type"] == "request_too_large"
        assert server.complete(prompt="The", max_tokens=1)


def test_a_taken_port_fails_at_once(server: LiveServer) -> None:
    port = str(httpx.URL(server.url).port)
    start = time.monotonic()
    command = [sys.executable, "-m", "lynx_rt", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert time.monotonic() - start < 10


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "lynx_rt", "serve", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "lynx-rt: error:" in done.stderr, done.stderr


def test_drain() -> None:
    """After SIGTERM, what runs is finished, what is new is refused, and the exit code is 0."""
    with serving() as server:
        got: list = []
        body = {**LONG, "max_tokens": 300, "stream": True}
        reader = threading.Thread(target=lambda: got.extend(server.events("/v1/completions", body)))
        reader.start()
        wait_for(server, 1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        ready = server.client.get("/ready")
        assert ready.status_code == 503 and ready.json()["phase"] == "draining"
        assert server.client.get("/health").status_code == 200
        refused = server.post("/v1/completions", LONG)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        reader.join(60)
        assert got[-1] == "[DONE]" and got[-2]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("second", [False, True])
def test_a_drain_that_ends_early(second: bool) -> None:
    """A stream that is cut off by the timeout says so; a second signal ends the process."""
    with serving("--shutdown-timeout", "100" if second else "0.1") as server:
        got: list = []

        def read() -> None:
            try:
                got.extend(server.events("/v1/completions", {**LONG, "n": 16, "temperature": 1}))
            except httpx.HTTPError as error:
                got.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        while not server.client.get("/v1/lynx/state").json()[
            "generation_tokens"
        ]:  # without a token, no stream has begun
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        if second:
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        reader.join(60)
        if not second:
            assert got[-1] == "[DONE]" and "abort" in json.dumps(got[-20:])


class _Hanging:
    """What /health asks of an engine, whose step hangs."""

    expert_selection = "topk"
    stalled_seconds = 0.0


def test_the_watchdog() -> None:
    """A process whose step hangs is unhealthy, and well again once it goes on."""
    state = ServerState(Settings(model="x", served_model_names=("x",), watchdog_seconds=5))
    engine = _Hanging()
    state.engine, state.phase = engine, "ready"  # type: ignore[assignment]
    with TestClient(make_app(state)) as client:
        for seconds, status in ((0.0, 200), (4.9, 200), (5.1, 503), (0.0, 200)):
            engine.stalled_seconds = seconds
            assert client.get("/health").status_code == client.get("/ready").status_code == status
        engine.stalled_seconds = 60.0
        assert "no step has ended for 60 s" in client.get("/health").json()["reason"]
        state.phase, state.load_error = "failed", "no such file"
        assert client.get("/health").status_code == 503


def test_an_idle_process_is_well() -> None:
    with serving("--watchdog", "0.5") as server:
        with connect(server) as client:
            client.sendall(request_bytes({**LONG, "stream": True}))
            client.recv(100)
            assert server.client.get("/health").status_code == 200
        server.wait_idle()
        time.sleep(0.7)
        assert server.client.get("/health").status_code == 200  # idle is not hanging


def test_settings_from_variables_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('max_num_seqs = 3\nserved_model_name = ["one", "two"]\nno_prefix_caching = true\nport = 1\n')
    variables = {"LYNX_RT_SERVE_MAX_NUM_SEQS": "2", "LYNX_RT_SERVE_MAX_NUM_QUEUED_REQS": "5"}
    with serving("--config", str(file), "--port", "0", env=variables) as server:
        assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["one", "two"]
        assert "at most 7 completions" in server.log()
        assert server.complete(prompt="The", model="two", max_tokens=1)["model"] == "two"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no_such_option = 1", "no_such_option: there is no such option"),
        ("port = 99999", "port: must be from 0 to 65535"),
        ("port = [1, 2]", "port: expected one value"),
        ('batch_isolation = "some"', "expected one of none, key, group"),
        ("access_log = 3", "access_log: expected true or false"),
        ("port =", "--config"),
    ],
)
def test_wrong_settings(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    command = [sys.executable, "-m", "lynx_rt", "serve", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and says in done.stderr, done.stderr


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with serving("--uds", path, wait=False) as server:
        transport = httpx.HTTPTransport(uds=path)
        with httpx.Client(transport=transport, base_url="http://x") as client:
            end = time.monotonic() + 30
            while client.get("/ready").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.05)
            assert client.get("/v1/models").json()["data"]
        assert server.stop() == 0
    assert not os.path.exists(path)
