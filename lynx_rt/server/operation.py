"""Routes for those who run the server: health, readiness, models, version, state."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lynx_rt._C import build_info
from lynx_rt.server.errors import ApiError
from lynx_rt.server.state import ServerState, state_of

router = APIRouter(tags=["operation"])


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while steps end, also during loading and draining; 503 where the process should be restarted."""
    fault = state_of(request).health_fault()
    return Response(status_code=200) if fault is None else JSONResponse({"status": "unhealthy", "reason": fault}, 503)


@router.get("/ping")
@router.post("/ping")
async def ping(request: Request) -> Response:
    """The same as /health, by SageMaker's name."""
    return await health(request)


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """200 where requests are taken; 503 with the phase, and the progress of loading."""
    state = state_of(request)
    return JSONResponse(state.readiness(), 200 if state.phase == "ready" and state.health_fault() is None else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format; docs/metrics.md explains every series."""
    body, content_type = await state_of(request).metrics.render()
    return Response(body, headers={"Content-Type": content_type})


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of lynx_rt."""
    return {"version": build_info()["version"]}


@router.get("/load")
async def load(request: Request) -> dict[str, int]:
    """Completions that run or wait."""
    return {"server_load": state_of(request).num_sequences}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The served names; all of them are the same model."""
    state = state_of(request)
    return {"object": "list", "data": [_model(state, name) for name in state.settings.served_model_names]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One served name."""
    state = state_of(request)
    return _model(state, state.model_name(name))


def _model(state: ServerState, name: str) -> dict[str, Any]:
    engine = state.engine
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "lynx_rt",
        "root": state.settings.model,
        "parent": None,
        "input_modalities": ["text", "image"] if engine is not None and engine.inputs.images.reads_images else ["text"],
        "max_model_len": None if engine is None else engine.max_model_len,
        "permission": [],
    }


@router.post("/v1/embeddings", include_in_schema=False)
async def embeddings() -> None:
    raise ApiError(404, "there are no embeddings: the model generates text only")
