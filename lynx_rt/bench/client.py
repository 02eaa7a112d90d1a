"""A small HTTP client for load tests: it notes when pieces of an answer come, and leaves reading them for after the run."""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lynx_rt.errors import LynxError


@dataclass(frozen=True)
class Target:
    """A server. key: sent as `Authorization: Bearer`, "" = none."""

    host: str
    port: int
    path: str = ""  # in front of every route, without a slash at its end
    tls: bool = False
    key: str = ""

    @classmethod
    def parse(cls, url: str, key: str = "") -> Target:
        """Reads "http://HOST[:PORT][/PATH]". A path that ends with /v1 is taken without it. Raises LynxError."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise LynxError(f"--base-url {url}: {error}", "base_url") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LynxError(f"--base-url must be http://HOST:PORT or https://HOST, got {url!r}", "base_url")
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), path, tls, key)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


@dataclass
class Reply:
    """One request and its answer. Times are seconds of time.perf_counter()."""

    due: float = 0.0  # when the schedule wanted it sent
    sent: float = 0.0  # before the connection is opened
    status: int = 0  # 0 = no answer
    pieces: list[tuple[float, bytes]] = field(default_factory=list)  # of the body, with the time at which each came
    error: str = ""  # of the connection

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


class _Answer(asyncio.Protocol):
    """Takes one HTTP/1.1 answer: by chunks, by length, or until the connection closes (RFC 9112, sections 6 and 7)."""

    def __init__(self, request: bytes, reply: Reply) -> None:
        self._request, self._reply = request, reply
        self._buffer = bytearray()
        self._in_body = self._chunked = False
        self._transport: asyncio.Transport | None = None
        self._left: int | None = None  # bytes of a body whose length is known
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._buffer += data
        try:
            if not self._in_body and not self._take_head():
                return
            piece = self._take_chunks() if self._chunked else self._take_all()
        except (ValueError, IndexError):
            self._end("the answer is not HTTP/1.1")
            return
        if piece:
            self._reply.pieces.append((now, piece))
        if self._left == 0:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        whole = self._in_body and not self._chunked and self._left is None
        self._end("" if whole and error is None else f"the connection was lost: {error or 'closed in mid-answer'}")

    def _take_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        status = int(lines[0].split()[1])
        if status < 200:  # 100 Continue: another head follows
            return self._take_head()
        self._reply.status = status
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        self._chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if not self._chunked and b"content-length" in headers:
            self._left = int(headers[b"content-length"])
        self._in_body = True
        return True

    def _take_all(self) -> bytes:
        piece = bytes(self._buffer)
        self._buffer.clear()
        if self._left is not None:
            self._left -= len(piece)
        return piece

    def _take_chunks(self) -> bytes:
        """Returns the contents of the chunks that are complete. Trailers are left unread."""
        out = bytearray()
        while (end := self._buffer.find(b"\r\n")) >= 0:
            size = int(bytes(self._buffer[:end]).partition(b";")[0], 16)
            if size == 0:
                self._left = 0
                break
            if len(self._buffer) < end + 2 + size + 2:
                break
            out += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
        return bytes(out)

    def _end(self, error: str = "") -> None:
        if not self.done.done():
            self._reply.error = error
            self.done.set_result(None)
        self.close()

    def close(self) -> None:
        """Closes the connection. A server sees its client go."""
        if self._transport is not None:
            self._transport.abort()


def request_bytes(target: Target, method: str, route: str, body: Any = None) -> bytes:
    """Returns an HTTP/1.1 request that asks for its connection to be closed. body: is sent as JSON; None = no body."""
    lines = [f"{method} {target.path}{route} HTTP/1.1", f"Host: {target.host}:{target.port}", "Connection: close"]
    data = b""
    if target.key:
        lines.append(f"Authorization: Bearer {target.key}")
    if body is not None:
        data = json.dumps(body, separators=(",", ":")).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data


@functools.cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()  # reads the system's certificates: not for every request


async def exchange(target: Target, request: bytes, reply: Reply, timeout_s: float) -> Reply:
    """Sends a request on a connection of its own and fills `reply`. No failure is raised: `error` has it."""
    reply.sent = time.perf_counter()
    reply.due = reply.due or reply.sent
    loop = asyncio.get_running_loop()
    answers: list[_Answer] = []

    def protocol() -> _Answer:
        answers.append(_Answer(request, reply))
        return answers[-1]

    async def whole() -> None:
        context = _tls_context() if target.tls else None
        await loop.create_connection(protocol, target.host, target.port, ssl=context)
        await answers[-1].done

    try:
        await asyncio.wait_for(whole(), timeout_s)
    except asyncio.TimeoutError:
        reply.error = f"no end of the answer within {timeout_s:g} s"
    except OSError as error:
        reply.error = f"{type(error).__name__}: {error.strerror or error}"
    finally:
        for answer in answers:
            answer.close()
    return reply


async def get(target: Target, route: str, timeout_s: float = 60) -> Reply:
    """Returns the answer to a GET."""
    return await exchange(target, request_bytes(target, "GET", route), Reply(), timeout_s)
