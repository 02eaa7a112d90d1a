"""What happens to every request before its handler: size, key, request id. Plain ASGI, which costs nothing per chunk."""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lynx_rt.server.answer import ErrorAnswer
from lynx_rt.server.errors import ApiError, is_anthropic
from lynx_rt.server.page import is_page

_OPEN = ("/health", "/ready", "/ping")  # probes have no key
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Gate:
    """Refuses requests without a valid key or with too large a body; gives each answer an X-Request-Id."""

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], max_body_bytes: int, has_page: bool) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in api_keys]
        self._max_body_bytes = max_body_bytes
        self._has_page = has_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        too_large = ErrorAnswer(
            ApiError(413, f"the body may have {self._max_body_bytes} bytes", code="request_too_large")
        )
        size = 0

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = [b"x-request-id", *([b"request-id"] if is_anthropic(scope["path"]) else [])]
                message["headers"] = [*message.get("headers", ()), *((name, request_id) for name in names)]
            await send(message)

        async def receive_bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            # The handler sees a client that has gone, and what it answers is replaced.
            return message if size <= self._max_body_bytes else {"type": "http.disconnect"}

        async def send_checked(message: Message) -> None:
            if size <= self._max_body_bytes:
                await send_named(message)
            elif message["type"] == "http.response.start":
                await too_large(scope, receive, send_named)

        key = _key(headers)
        guarded = self._digests and not self._is_open(scope["path"], headers)
        if guarded and (key is None or not self._is_known(key)):
            text = "this server needs an API key: Authorization: Bearer KEY" if key is None else "unknown API key"
            await ErrorAnswer(ApiError(401, text, code="invalid_api_key"))(scope, receive, send_named)
            return
        scope["state"]["api_key"] = key
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            await too_large(scope, receive, send_named)
        else:
            await self._app(scope, receive_bounded, send_checked)

    def _is_open(self, path: str, headers: dict[bytes, bytes]) -> bool:
        return path in _OPEN or (self._has_page and is_page(path, headers.get(b"accept", b"").decode("latin-1")))

    def _is_known(self, key: str) -> bool:
        digest = _digest(key.encode())
        return (
            sum(hmac.compare_digest(digest, known) for known in self._digests) > 0
        )  # always compares with all of them


class DirectSend:
    """Keeps the server's own `send`, for bodies in many pieces: a middleware looks at the start of an answer, and not at each piece.

    It stands around the whole application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["send"] = send
        await self._app(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _key(headers: dict[bytes, bytes]) -> str | None:
    """Returns the key as OpenAI's, Anthropic's and Azure's clients send it."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    value = token.strip() if scheme.lower() == b"bearer" else b""
    value = value or headers.get(b"x-api-key", b"") or headers.get(b"api-key", b"")
    return value.decode("latin-1") or None
