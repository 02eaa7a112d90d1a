"""A server in a thread whose engine takes images (tests/fake_vision.py), and a network of made-up hosts with pictures."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn
from fake_vision import pictured_engine

from lynx_rt.server.app import make_app
from lynx_rt.server.fetch import Fetcher
from lynx_rt.server.settings import Settings
from lynx_rt.server.state import ServerState


class Pictured:
    """A server in a thread, and what its compiled engine was given. `pages`: what is at which URL's path."""

    def __init__(self, state: ServerState, url: str) -> None:
        self.state, self.url = state, url
        self.pages: dict[str, bytes] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.client = httpx.Client(base_url=url, timeout=30)
        state.fetcher = Fetcher(("pictures.example",), 2.0, 1 << 20, self._resolve, self._connect)

    async def _resolve(self, host: str, port: int) -> list[str]:
        return ["93.184.215.14"]

    async def _connect(self, address: str, port: int, **tls: Any) -> Any:
        near, far = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=near)
        self._tasks.append(asyncio.get_running_loop().create_task(self._answer(far)))
        return reader, writer

    async def _answer(self, far: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=far)
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        if path in self.pages:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + self.pages[path])
        elif path == "/never":
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\n\r\n")
        writer.close()

    @property
    def images(self) -> list[list[dict[str, Any]]]:
        assert self.state.engine is not None
        return self.state.engine._core.images  # type: ignore[attr-defined]

    def post(self, path: str, body: dict[str, Any], status: int = 200) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def chat(self, *parts: Any, status: int = 200, **more: Any) -> Any:
        body = {"messages": [{"role": "user", "content": list(parts)}], "max_tokens": 2, "temperature": 0, **more}
        return self.post("/v1/chat/completions", body, status)


@contextlib.contextmanager
def pictured_server(allowed: tuple[str, ...], **options: Any) -> Iterator[Pictured]:
    settings = Settings(model="nano", served_model_names=("nano",), allowed_media_domains=allowed)
    state = ServerState(settings)
    with pictured_engine(**options) as engine:
        state.set_ready(engine)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(state), lifespan="off", log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        made = Pictured(state, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield made
        finally:
            made.client.close()
            server.should_exit = True
            thread.join()
            state.encoders.shutdown()
