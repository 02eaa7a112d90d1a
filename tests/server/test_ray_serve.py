"""lynx_rt on a real cluster of Ray with two engines on this machine: routes, full engines, an engine that dies, an update, packing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed: the extra ray"),
]
SEQS = 4
PROMPT = "Q: 12 times 22 = ?\nA:"
PATIENCE = 300  # seconds for what takes a few on an idle machine
SLOW = {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ray = pytest.importorskip("ray")
    from ray import serve

    port, folder = free_port(), Path("/tmp") / f"lynx_rt-ray-{os.getpid()}"  # a short path: Ray's sockets lie in it
    # Ray's workers look for modules in the directory that ray.init() is called in, and that of a checkout has a lynx_rt that is not compiled.
    root = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("ray"))
    ray.init(
        num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 << 20, logging_level="error", log_to_driver=False,
        _temp_dir=str(folder),
    )  # fmt: skip
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        run()
        yield f"http://127.0.0.1:{port}"
    finally:
        try:
            serve.shutdown()
        finally:
            ray.shutdown()
            os.chdir(root)
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(seed: int = 1, autoscaling: dict[str, Any] | None = None) -> None:
    from ray import serve

    import lynx_rt
    from lynx_rt.integrations.ray_serve import build_app

    app = build_app(
        lynx_rt.shipped_model(), engine={"max_num_seqs": SEQS, "num_threads": 1, "seed": seed}, num_replicas=2, max_ongoing_requests=SEQS,
        max_queued_requests=2, actor_options={"num_cpus": 0.5}, autoscaling=autoscaling, shutdown_timeout=PATIENCE,
    )  # fmt: skip
    serve.run(app)


class Stream:
    """A stream that is read by a thread of its own."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.status, self.replica, self.retry_after, self.events = 0, "", "", []
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, body))
        self._thread.start()

    def _read(self, url: str, body: dict[str, Any]) -> None:
        try:
            with httpx.stream(
                "POST", f"{url}/v1/completions", json=body | {"stream": True}, timeout=PATIENCE
            ) as answer:
                self.status, self.replica = answer.status_code, answer.headers.get("x-lynx-replica", "")
                self.retry_after = answer.headers.get("retry-after", "")
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line.removeprefix("data: "))
                        self._begun.set()
        finally:
            self._begun.set()

    def wait_begun(self) -> Stream:
        assert self._begun.wait(PATIENCE)
        return self

    def end(self) -> list[str]:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.events


def text(events: list[str]) -> str:
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def kill(replica: str) -> None:
    import ray

    ray.kill(ray.get_actor(f"SERVE_REPLICA::default#engine#{replica}", namespace="serve"))


def settle() -> None:
    """Lets the router hear of requests that have begun or ended, which it does a moment after the client."""
    time.sleep(1)


def wait_for_engines(url: str, count: int = 2) -> set[str]:
    """Returns the names of the engines that answer, once there are `count`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        streams = [Stream(url, SLOW | {"max_tokens": 60}) for _ in range(SEQS + 1)]
        for one in streams:
            one.end()
        found = {one.replica for one in streams if one.status == 200}
        if len(found) == count:
            settle()
            return found
    raise AssertionError(f"no {count} engines")


def test_routes_are_those_of_the_server(url: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": PROMPT, "temperature": 0}, timeout=PATIENCE)
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == " 264"
    assert text(Stream(url, {"prompt": PROMPT, "temperature": 0}).end()) == " 264"
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "lynx-nano"
    assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/ready").status_code == 200
    wrong = httpx.post(f"{url}/v1/completions", json={"prompt": PROMPT, "temperature": "hot"})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "temperature"
    assert httpx.post(f"{url}/v1/completions", content=b"{").status_code == 400
    assert httpx.get(f"{url}/none").status_code == 404


def test_packing_and_full_engines(url: str) -> None:
    """One engine is filled before the other; when both are full, two requests wait, and others get 503 with Retry-After."""
    wait_for_engines(url)
    streams = [Stream(url, SLOW).wait_begun() for _ in range(2 * SEQS)]
    names = [one.replica for one in streams]
    assert len(set(names[:SEQS])) == 1 and len(set(names[SEQS:])) == 1 and names[0] != names[-1]
    more = [Stream(url, SLOW | {"max_tokens": 5}) for _ in range(6)]
    for one in streams + more:
        one.end()
    assert all(one.status == 200 and one.events[-1] == "[DONE]" for one in streams)
    refused = [one for one in more if one.status == 503]
    assert len(refused) >= 2 and all(int(one.retry_after) >= 1 for one in refused)
    assert sum(one.status == 200 for one in more) >= 2


def test_an_engine_dies(url: str) -> None:
    """Requests that had not begun to stream go to another engine; streams end with an error event."""
    wait_for_engines(url)
    expected = httpx.post(f"{url}/v1/completions", json=SLOW, timeout=PATIENCE).json()["choices"][0]["text"]
    settle()
    streams = [Stream(url, SLOW).wait_begun() for _ in range(SEQS)]
    with ThreadPoolExecutor(2) as pool:
        whole = [pool.submit(httpx.post, f"{url}/v1/completions", json=SLOW, timeout=PATIENCE) for _ in range(2)]
        other = Stream(url, SLOW).wait_begun()  # on the second engine, as the two before it
        assert other.replica != streams[0].replica
        settle()  # the two have been sent
        kill(other.replica)
        answers = [answer.result() for answer in whole]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json()["choices"][0]["text"] for answer in answers] == [expected] * 2
    assert json.loads(other.end()[-2])["error"]["code"] == "engine_lost" and other.events[-1] == "[DONE]"
    assert all(text(one.end()) == expected for one in streams)


def test_an_update_loses_no_stream(url: str) -> None:
    """Engines are exchanged while they answer: every stream is complete, and no request is refused."""
    before = wait_for_engines(url)
    expected = httpx.post(f"{url}/v1/completions", json=SLOW, timeout=PATIENCE).json()["choices"][0]["text"]
    settle()
    streams = [Stream(url, SLOW).wait_begun() for _ in range(SEQS + 2)]
    assert {one.replica for one in streams} == before
    statuses, done = [], threading.Event()

    def ask() -> None:
        while not done.is_set():
            statuses.append(
                httpx.post(
                    f"{url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 2}, timeout=PATIENCE
                ).status_code
            )

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        run(seed=2)
    finally:
        done.set()
        asking.join(PATIENCE)
    assert [text(one.end()) for one in streams] == [expected] * len(streams)
    assert set(statuses) == {200} and not before & wait_for_engines(url)


def test_autoscaling(url: str) -> None:
    """More requests than one engine should have start a second one; when they have ended it is stopped, and no stream is lost."""
    run(autoscaling={
        "min_replicas": 1, "max_replicas": 2, "initial_replicas": 1, "target_ongoing_requests": 1, "upscale_delay_s": 0.5,
        "downscale_delay_s": 0.5, "metrics_interval_s": 0.2, "look_back_period_s": 1,
    })  # fmt: skip
    ends: list[tuple[int, str]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            one = Stream(url, SLOW)
            events = one.end()
            ends.append((one.status, events[-1] if events else ""))

    wait_for_count(1)
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            wait_for_count(2)
        finally:
            done.set()
        for one in asking:
            one.result()
    wait_for_count(1)
    assert set(ends) == {(200, "[DONE]")}


def wait_for_count(count: int) -> None:
    """Waits until `count` engines run, and no other one is there."""
    from ray import serve

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        states = serve.status().applications["default"].deployments["engine"].replica_states
        if {state: number for state, number in states.items() if number} == {"RUNNING": count}:
            return
        time.sleep(0.2)
    raise AssertionError(f"{dict(states)}, expected {count} running engines")
