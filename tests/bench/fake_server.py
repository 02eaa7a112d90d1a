"""An HTTP server that answers as a test says: pieces of bytes, each after a delay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence

Script = Sequence[tuple[float, bytes]]  # (seconds to wait, bytes to send); an empty piece closes the connection


def chunked(*pieces: bytes) -> list[bytes]:
    return [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]


def head(status: int = 200, *, extra: str = "Transfer-Encoding: chunked") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Type: text/event-stream\r\n{extra}\r\n\r\n".encode()


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def token(text: str) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": None}]})


def usage(prompt: int, completion: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


def json_answer(value: object, status: int = 200) -> Script:
    body = json.dumps(value).encode()
    return [(0, head(status, extra=f"Content-Length: {len(body)}") + body)]


def stream(delays: Sequence[float], prompt: int = 3, end: Sequence[bytes] = ()) -> Script:
    """A completion with a token after each delay, then usage, `end` and [DONE]."""
    script: list[tuple[float, bytes]] = [(0, head())]
    script += [(delay, chunked(token(f"t{i}"))[0]) for i, delay in enumerate(delays)]
    last = [usage(prompt, len(delays)), *end, event(b"[DONE]")]
    return [*script, (0, b"".join(chunked(*last)) + b"0\r\n\r\n")]


@contextlib.contextmanager
def fake_server(answer: Callable[[str, dict], Script]) -> Iterator[str]:
    """Yields the URL of a server that calls answer(route, body) for each request."""
    ready = threading.Event()
    address: list[int] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            for delay, piece in answer(lines[0].split()[1], json.loads(body or b"{}")):
                await asyncio.sleep(delay)
                if not piece:
                    break
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def main() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(serve_one, "127.0.0.1", 0, backlog=1000)
        address.append(server.sockets[0].getsockname()[1])
        running.append((asyncio.get_running_loop(), stop))
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))  # run() cancels what still serves
    thread.start()
    ready.wait(30)
    try:
        yield f"http://127.0.0.1:{address[0]}"
    finally:
        loop, stop = running[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
