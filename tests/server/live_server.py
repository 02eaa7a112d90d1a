"""A live server on lynx-nano, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx


class LiveServer:
    """A `lynx-rt serve` process on a free port."""

    def __init__(self, *options: str, env: dict[str, str] | None = None, wait: bool = True) -> None:
        command = [sys.executable, "-m", "lynx_rt", "serve", *options]
        if "--port" not in options and "--uds" not in options:
            command += ["--port", "0"]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, **(env or {})}
        )
        assert self.process.stderr is not None
        self.first_line = self.process.stderr.readline()
        found = re.search(r"listening on (\S+?),", self.first_line)
        assert found, self.first_line + self.process.stderr.read()
        self.url = found[1]
        os.set_blocking(self.process.stderr.fileno(), False)
        self._log = self.first_line
        url = "http://unix" if self.url.startswith("unix:") else self.url
        self.client = httpx.Client(base_url=url, timeout=60)
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while self.client.get("/ready").status_code != 200:
            assert time.monotonic() < end and self.process.poll() is None, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        """Returns what the process has written to standard error so far."""
        assert self.process.stderr is not None
        with contextlib.suppress(TypeError):
            self._log += self.process.stderr.read() or ""
        return self._log

    def post(self, path: str, body: object, **options: object) -> httpx.Response:
        return self.client.post(path, json=body, **options)  # type: ignore[arg-type]

    def complete(self, **body: object) -> dict:
        answer = self.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, text: str = "12 times 22 = ?", **body: object) -> dict:
        answer = self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, path: str, body: dict) -> list:
        """Returns the values of a stream; the last one is "[DONE]"."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            return [
                line if line == "[DONE]" else json.loads(line)
                for line in (raw.removeprefix("data: ") for raw in answer.iter_lines() if raw.startswith("data: "))
            ]

    def num_sequences(self) -> int:
        return self.client.get("/load").json()["server_load"]

    def wait_idle(self, seconds: float = 5) -> None:
        end = time.monotonic() + seconds
        while self.num_sequences():
            assert time.monotonic() < end, "requests are still in flight"
            time.sleep(0.01)

    def anonymous_memory(self) -> int:
        """Returns bytes of RssAnon and VmSwap."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return sum(int(found) * 1024 for found in re.findall(r"(?:RssAnon|VmSwap):\s+(\d+) kB", text))

    def stop(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextlib.contextmanager
def serving(*options: str, **more: object) -> Iterator[LiveServer]:
    live = LiveServer(*options, **more)  # type: ignore[arg-type]
    try:
        yield live
    finally:
        live.close()
