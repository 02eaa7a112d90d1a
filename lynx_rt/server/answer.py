"""Answers that take long to make: JSON at the end, or server-sent events on the way. A client that goes ends its request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from json.encoder import encode_basestring
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lynx_rt.server.errors import ApiError, from_exception, is_anthropic
from lynx_rt.server.settings import Settings

_log = logging.getLogger("lynx_rt.server")
_EVENT_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx must not collect events
}
_DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def json_text(text: str) -> bytes:
    """Returns a text as JSON has it."""
    return encode_basestring(text).encode()


def to_json(value: Any) -> bytes:
    # Half a pair of surrogates, which a client may have sent, becomes JSON's escape of it.
    return _encode(value).encode(errors="backslashreplace")


class ErrorAnswer(Response):
    """An error in the form of the API that the request is for."""

    def __init__(self, error: ApiError) -> None:
        super().__init__()
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._error
        body = error.anthropic_body() if is_anthropic(scope.get("path", "")) else error.body()
        await Response(to_json(body), error.status, error.headers(), "application/json")(scope, receive, send)


class _LongAnswer(Response):
    """Runs `_work` until it ends or the client has gone, which cancels it."""

    _direct_send: Send  # past the middlewares, which look at an answer's start only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._direct_send = scope.get("state", {}).get("send", send)
        work = asyncio.ensure_future(self._work(scope, send))
        gone = asyncio.ensure_future(_client_has_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    async def _work(self, scope: Scope, send: Send) -> None:
        raise NotImplementedError


class JsonAnswer(_LongAnswer):
    """The JSON of what `make` returns. An exception becomes the error's answer."""

    def __init__(self, make: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self._make = make

    async def _work(self, scope: Scope, send: Send) -> None:
        try:
            body = to_json(await self._make())
            answer = Response(body, media_type="application/json")
        except Exception as error:
            answer = ErrorAnswer(logged(error))
        await answer(scope, _never, send)


class EventAnswer(_LongAnswer):
    """Server-sent events, one per value of `events`.

    Up to the first event, an exception becomes a plain answer with its status. Later it becomes an event of its own, because
    clients take a stream that just ends for complete.
    events: yields JSON values, or (event name, value).  done: the last line, None = none.  keep_alive: sent when nothing else is.
    """

    def __init__(
        self,
        events: AsyncIterator[Any],
        settings: Settings,
        *,
        error_event: Callable[[ApiError], Any] = ApiError.body,
        done: bytes | None = _DONE,
        keep_alive: bytes = _KEEP_ALIVE,
    ) -> None:
        super().__init__()
        self._events = events
        self._keep_alive_seconds = settings.keep_alive_seconds
        self._stall_timeout = settings.stall_timeout
        self._error_event = error_event
        self._done = done
        self._keep_alive_line = keep_alive
        self._started = False

    async def _work(self, scope: Scope, send: Send) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        sending = _StallTimer(loop, self._stall_timeout, task)
        beat = loop.create_task(self._keep_alive(send, sending)) if self._keep_alive_seconds > 0 else None
        try:
            try:
                async for event in self._events:
                    await self._send(send, sending, _event_bytes(event))
            except Exception as error:
                fault = logged(error)
                if not self._started:
                    await ErrorAnswer(fault)(scope, _never, send)
                    return
                await self._send(send, sending, _event_bytes(self._error_event(fault)))
            await self._send(send, sending, self._done or b"", last=True)
        finally:
            sending.stop()
            if beat is not None:
                beat.cancel()
            await _close(self._events)

    async def _send(self, send: Send, sending: _StallTimer, body: bytes, last: bool = False) -> None:
        sending.begin()
        if not self._started:
            self._started = True
            headers = [(name.lower().encode(), value.encode()) for name, value in _EVENT_HEADERS.items()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        direct = send if last else self._direct_send
        await direct({"type": "http.response.body", "body": body, "more_body": not last})
        sending.end()

    async def _keep_alive(self, send: Send, sending: _StallTimer) -> None:
        """Sends a line without meaning whenever nothing was sent for a while: proxies cut silent connections."""
        while True:
            await asyncio.sleep(self._keep_alive_seconds)
            if sending.idle_seconds() >= self._keep_alive_seconds:
                await self._send(send, sending, self._keep_alive_line)


class _StallTimer:
    """Cancels a task whose client has not taken what was sent. It costs two attributes for each chunk, and no timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float, task: asyncio.Task[None]) -> None:
        self._loop = loop
        self._limit = limit
        self._task = task
        self._since: float | None = None  # start of a send that has not ended
        self._last = time.monotonic()
        self._handle = loop.call_later(limit / 4, self._check)

    def begin(self) -> None:
        self._since = time.monotonic()

    def end(self) -> None:
        self._last, self._since = self._since or time.monotonic(), None

    def idle_seconds(self) -> float:
        """Returns the time since the last send began; 0 during one."""
        return time.monotonic() - self._last if self._since is None else 0.0

    def stop(self) -> None:
        self._handle.cancel()

    def _check(self) -> None:
        if self._since is not None and time.monotonic() - self._since > self._limit:
            _log.warning("a client has not read for %.0f s: its request ends", self._limit)
            self._task.cancel()
            return
        self._handle = self._loop.call_later(self._limit / 4, self._check)


def _event_bytes(event: Any) -> bytes:
    if isinstance(event, bytes):
        return event
    if isinstance(event, tuple):
        name, value = event
        return b"event: " + str(name).encode() + b"\ndata: " + to_json(value) + b"\n\n"
    return b"data: " + to_json(event) + b"\n\n"


def logged(error: BaseException) -> ApiError:
    """Returns the answer for an exception, which is logged where it is the server's fault."""
    fault = from_exception(error)
    if fault.status == 500:
        _log.error("a request failed: %s", error, exc_info=error)
    return fault


async def _client_has_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Any:
    await asyncio.Event().wait()


async def _close(events: AsyncIterator[Any]) -> None:
    if callable(close := getattr(events, "aclose", None)):
        await close()
