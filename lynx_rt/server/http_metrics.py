"""Counts HTTP requests: an ASGI middleware around the whole application."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lynx_rt.server.errors import from_exception
from lynx_rt.server.metrics import Metrics

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_NOT_COUNTED = frozenset(("/metrics", "/health", "/ready", "/ping", "/version"))
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_CLIENT_GONE = 499  # nginx's number for a client that closed before the answer began


class HttpMetrics:
    """Tells `metrics` of every request: its route, method, status, and the seconds until its answer has ended.

    Probes and /metrics are left out. A path that no route has counts as handler="none", a made-up method as "other": a client
    must not be able to make up series.
    """

    def __init__(self, app: _App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http" or scope["path"] in _NOT_COUNTED:
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_and_note(message: _Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.monotonic()
        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            status = status or from_exception(error).status  # what lies around this answers so
            raise
        finally:
            handler = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.on_http(handler, method, status or _CLIENT_GONE, time.monotonic() - start)
