"""The middleware that counts HTTP requests, around applications of FastAPI and of bare ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.testclient import TestClient
from metered import samples, total

from lynx_rt.errors import ValidationError
from lynx_rt.server.answer import ErrorAnswer
from lynx_rt.server.errors import from_exception
from lynx_rt.server.http_metrics import HttpMetrics
from lynx_rt.server.metrics import Metrics

REQUESTS, SECONDS = "http_requests_total", "http_request_duration_seconds"


def make_app() -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/v1")

    @router.get("/models/{name:path}")
    async def model(name: str) -> str:
        return name

    @router.post("/full")
    async def full() -> None:
        raise HTTPException(503)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("broken")

    @app.get("/wrong")
    async def wrong() -> None:
        raise ValidationError("a field is wrong")

    async def answer(request: Request, error: Exception) -> Response:
        return ErrorAnswer(from_exception(error))

    app.add_exception_handler(Exception, answer)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            for _ in range(3):
                await asyncio.sleep(0.02)
                yield b"data: x\n\n"

        return StreamingResponse(events())

    for path in ("/metrics", "/health", "/ready", "/ping", "/version"):
        app.get(path)(lambda: "ok")
    app.include_router(router)
    return app


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(None, "nano")


@pytest.fixture
def client(metrics: Metrics) -> TestClient:
    return TestClient(HttpMetrics(make_app(), metrics), raise_server_exceptions=False)


def test_requests_are_counted_by_route_method_and_status(client: TestClient, metrics: Metrics) -> None:
    for name in ("a", "b/c", "d"):
        assert client.get(f"/v1/models/{name}").status_code == 200
    assert client.post("/v1/full").status_code == 503
    assert client.get("/broken").status_code == 500
    assert client.get("/wrong").status_code == 400
    values = samples(metrics)
    assert total(values, REQUESTS, handler="/v1/models/{name:path}", method="GET", status="200") == 3
    assert total(values, REQUESTS, handler="/v1/full", method="POST", status="503") == 1
    assert total(values, REQUESTS, handler="/broken", method="GET", status="500") == 1
    assert total(values, REQUESTS, handler="/wrong", method="GET", status="400") == 1
    assert total(values, REQUESTS) == total(values, f"{SECONDS}_count") == 6


def test_a_stream_lasts_until_its_last_event(client: TestClient, metrics: Metrics) -> None:
    assert client.get("/stream").text.count("data: x") == 3
    assert total(samples(metrics), f"{SECONDS}_sum", handler="/stream") >= 0.06


def test_probes_are_left_out(client: TestClient, metrics: Metrics) -> None:
    for path in ("/metrics", "/health", "/ready", "/ping", "/version"):
        assert client.get(path).status_code == 200
    assert not any(name == REQUESTS for name, _ in samples(metrics))


def test_clients_cannot_make_up_series(client: TestClient, metrics: Metrics) -> None:
    for i in range(20):
        assert client.get(f"/nowhere/{i}").status_code == 404
        assert client.request(f"M{i}", "/stream").status_code == 405
    values = samples(metrics)
    assert total(values, REQUESTS, handler="none", method="GET", status="404") == 20
    assert total(values, REQUESTS, handler="/stream", method="other", status="405") == 20
    assert sum(name == REQUESTS for name, _ in values) == 2


async def receive() -> dict[str, Any]:
    return {"type": "http.request"}


async def send(message: Any) -> None:
    pass


def call(app: Any, metrics: Metrics, **scope: Any) -> Any:
    counted = HttpMetrics(app, metrics)
    return counted({"type": "http", "path": "/v1/x", "method": "POST", **scope}, receive, send)


def test_a_client_that_leaves_before_the_answer_counts_as_499(metrics: Metrics) -> None:
    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async def leave() -> None:
        task = asyncio.ensure_future(call(hang, metrics))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert total(samples(metrics), REQUESTS, status="499") == 1


def test_an_error_after_the_head_keeps_the_status_that_the_client_saw(metrics: Metrics) -> None:
    async def break_off(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(call(break_off, metrics))
    assert total(samples(metrics), REQUESTS, status="200") == 1


def test_other_protocols_pass_through(metrics: Metrics) -> None:
    seen: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(call(note, metrics, type="lifespan"))
    asyncio.run(call(note, metrics, type="websocket"))
    assert seen == ["lifespan", "websocket"]
    assert not any(name == REQUESTS for name, _ in samples(metrics))


def test_a_metrics_error_does_not_reach_the_client(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_labelled", {})
    client = TestClient(HttpMetrics(make_app(), metrics))
    assert client.get("/v1/models/a").status_code == 200
