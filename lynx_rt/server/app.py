"""The ASGI application: routes, and the form of errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from lynx_rt._C import build_info
from lynx_rt.errors import LynxError
from lynx_rt.server import lynx_routes, messages_api, operation, page, responses_api, text_routes
from lynx_rt.server.answer import ErrorAnswer, logged
from lynx_rt.server.caller import caller_of
from lynx_rt.server.chat import create_chat_completion
from lynx_rt.server.completions import create_completion
from lynx_rt.server.errors import ApiError, bad_request, from_exception, from_status, from_validation
from lynx_rt.server.http_metrics import HttpMetrics
from lynx_rt.server.middleware import Gate
from lynx_rt.server.protocol import ChatBody, CompletionBody
from lynx_rt.server.state import ServerState

_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {}}}
    for status, text in {
        400: "a field is wrong; error.param names it",
        401: "no API key, or an unknown one",
        404: "the model is not served",
        413: "the body is too large",
        500: "the engine failed",
        503: "loading, full or shutting down; Retry-After says when to come back",
    }.items()
}


def make_app(state: ServerState) -> FastAPI:
    """Returns the application over a server's state. It answers from the start on; most routes need a loaded engine."""
    app = FastAPI(
        title="lynx_rt",
        version=build_info()["version"],
        root_path=state.settings.root_path,
        responses=_ANSWERS,
        redirect_slashes=False,
    )
    app.state.server = state
    app.add_middleware(
        Gate,
        api_keys=state.settings.api_keys,
        max_body_bytes=state.settings.max_body_bytes,
        has_page=state.settings.page,
    )
    if state.settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=state.settings.allowed_origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(HttpMetrics, metrics=state.metrics)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _crashed)
    # Starlette takes classes that are not named for crashes: the stack is logged, and the connection closed.
    app.add_exception_handler(ApiError, _failed)
    app.add_exception_handler(LynxError, _failed)
    app.include_router(operation.router)
    app.include_router(page.router)
    app.include_router(text_routes.router)
    app.include_router(responses_api.router)
    app.include_router(messages_api.router)
    app.include_router(lynx_routes.router)

    @app.post("/v1/completions", tags=["generation"])
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Completes one prompt or several."""
        return await create_completion(body, state, caller_of(request))

    @app.post("/v1/chat/completions", tags=["generation"])
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answers a conversation."""
        return await create_chat_completion(body, state, caller_of(request))

    return app


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return ErrorAnswer(from_validation(error.errors()))  # type: ignore[return-value]


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400 and isinstance(cause := error.__cause__, (ValueError, RecursionError)):
        # Bytes that are not UTF-8, lists in lists that are too deep, numbers that are too long.
        return ErrorAnswer(bad_request(f"the body cannot be read as JSON: {cause}"))
    return ErrorAnswer(from_status(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))


async def _failed(request: Request, error: Exception) -> Response:
    return ErrorAnswer(logged(error))


async def _crashed(request: Request, error: Exception) -> Response:
    return ErrorAnswer(from_exception(error))
