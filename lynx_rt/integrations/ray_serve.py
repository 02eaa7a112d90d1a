"""lynx_rt on Ray Serve: N engines behind one address, with the same routes as `lynx-rt serve`. Needs the extra: pip install "lynx_rt[ray]".

    from ray import serve
    from lynx_rt.integrations.ray_serve import build_app

    serve.run(build_app("path/to/model", engine={"expert_selection": "lynx"}, num_replicas=2, policy="pack"))

Every request passes an ingress, which reads the body for the router (lynx_rt.integrations.placement) and sends the request to an engine.
Where the engine dies before it has answered, the ingress asks another. An engine that is stopped, for an update or by autoscaling, gets no
more requests and goes on until the last of its answers is complete.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from lynx_rt.errors import LynxError, ValidationError
from lynx_rt.integrations.placement import POLICIES, PromptKey, prompt_key

try:
    import ray
    from ray import serve
    from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
except ModuleNotFoundError as error:
    raise LynxError(f'Ray Serve needs the package {error.name}: pip install "lynx_rt[ray]"') from None

from lynx_rt.engine.engine import Engine
from lynx_rt.server.answer import ErrorAnswer
from lynx_rt.server.app import make_app
from lynx_rt.server.errors import ApiError
from lynx_rt.server.middleware import DirectSend
from lynx_rt.server.settings import Settings
from lynx_rt.server.state import ServerState

_log = logging.getLogger("lynx_rt.ray")
_PATIENCE = 60.0  # seconds for which a request whose engine was lost is sent to others
_DEFAULT_SEQS = 32  # as `lynx-rt serve` has it
Messages = list[dict[str, Any]]  # of ASGI


class Replica:
    """One engine with its application, as an actor of Ray Serve."""

    def __init__(self, settings: Settings) -> None:
        self._state = ServerState(settings)
        self._app = DirectSend(make_app(self._state))
        self._state.set_ready(Engine(settings.model, **settings.engine))
        self._name = (b"x-lynx-replica", serve.get_replica_context().replica_id.unique_id.encode())

    async def answer(self, scope: dict[str, Any], body: bytes, key: PromptKey) -> AsyncIterator[Messages]:
        """Answers a request; yields what the application sends. key: for the router."""
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        gone, is_read = asyncio.Event(), False

        async def receive() -> dict[str, Any]:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            messages.put_nowait(dict(message))

        async def run() -> None:
            try:
                await self._app(scope, receive, send)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            while True:
                found = [await messages.get()]
                while not messages.empty():
                    found.append(messages.get_nowait())
                if sent := [message for message in found if message is not None]:
                    if sent[0]["type"] == "http.response.start":
                        sent[0]["headers"] = [*sent[0].get("headers", ()), self._name]
                    yield sent
                if None in found:
                    break
            await task  # raises what the application has raised
        finally:
            gone.set()  # a client that has gone: the application ends its request

    async def check_health(self) -> None:
        """Raises where Serve should start another engine in place of this one. Waits for no step."""
        if fault := self._state.health_fault():
            raise RuntimeError(fault)

    def __del__(self) -> None:
        if state := getattr(self, "_state", None):
            state.close()


class Ingress:
    """Reads requests and sends each to an engine, as an actor of Ray Serve that has many at once."""

    def __init__(self, replicas: Any, max_body_bytes: int) -> None:
        self._answer = replicas.options(stream=True).answer
        self._max_body_bytes = max_body_bytes

    def __serve_build_asgi_app__(self) -> Any:
        async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:  # Serve takes no bound method
            await self._forward(scope, receive, send)

        return application

    async def _forward(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body_bytes:
                return await _refuse(
                    ApiError(413, f"the body may have {self._max_body_bytes} bytes"), scope, receive, send
                )
        is_stream, has_begun, lost, pause = False, False, 0.0, 0.1
        while not lost or time.monotonic() - lost < _PATIENCE:
            try:
                async for messages in self._answer.remote(_plain(scope), bytes(body), key=_key(bytes(body))):
                    for message in messages:
                        if message["type"] == "http.response.start":
                            is_stream = any(b"event-stream" in value for _, value in message["headers"])
                        has_begun = True
                        await send(message)
                return
            except BackPressureError as error:
                if not lost:  # else it was let in before, and waits
                    wait = int(error.retry_after_s or 5)
                    full = ApiError(503, "all engines are full", code="queue_full", retry_after=wait)
                    return await _refuse(full, scope, receive, send)
            except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError, ReplicaUnavailableError) as error:
                _log.warning("an engine was lost: %s", type(error).__name__)
                if has_begun:
                    return await _end(is_stream, send)
                lost = lost or time.monotonic()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)
        await _refuse(ApiError(503, "no engine answers", code="engine_lost", retry_after=5), scope, receive, send)


async def _refuse(error: ApiError, scope: Any, receive: Any, send: Any) -> None:
    await ErrorAnswer(error)(scope, receive, send)


async def _end(is_stream: bool, send: Any) -> None:
    """Ends an answer that an engine has begun and cannot complete: a stream by an error event, another by closing the connection."""
    if not is_stream:
        raise ConnectionError("the engine was lost")
    event = {"error": {"message": "the engine was lost", "type": "server_error", "param": None, "code": "engine_lost"}}
    body = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _plain(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of a scope can be sent to another process."""
    names = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "client", "server")
    plain = {name: scope[name] for name in names if name in scope}
    return plain | {"headers": [tuple(pair) for pair in scope["headers"]], "root_path": ""}


def _key(body: bytes) -> PromptKey:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return PromptKey()
    return prompt_key(fields) if isinstance(fields, dict) else PromptKey()


def build_app(
    model: str | Path,
    *,
    engine: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    num_replicas: int = 1,
    policy: str = "pack",
    max_ongoing_requests: int | None = None,
    max_queued_requests: int | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    actor_options: Mapping[str, Any] | None = None,
    ingress_options: Mapping[str, Any] | None = None,
    shutdown_timeout: float = 60.0,
    deployment_options: Mapping[str, Any] | None = None,
) -> serve.Application:
    """Returns the application for serve.run().

    engine: arguments of Engine.  server: fields of lynx_rt.server.settings.Settings, as {"api_keys": ("key",)}.
    policy: which engine gets a request, see lynx_rt.integrations.placement. "pack" fills an engine up to max_num_seqs before the next.
    max_ongoing_requests: that an engine has at once, running or waiting (default: twice max_num_seqs).
    max_queued_requests: that wait for room in any engine; those beyond get 503 with Retry-After (default: max_ongoing_requests).
    autoscaling: Serve's, as {"min_replicas": 1, "max_replicas": 4}, in place of num_replicas; target_ongoing_requests is max_num_seqs
    by default, since engines are worth most when they are full.
    actor_options, ingress_options: Ray's for each engine (default: one CPU per thread of the engine) and for the ingress.
    shutdown_timeout: seconds that an engine which is stopped gets for the answers that it has begun.
    deployment_options: further ones of Serve for the engines, as {"max_surge_percent": 50}, which starts new engines of an update before it
    stops old ones.
    Raises ValidationError.
    """
    engine = dict(engine or {})
    seqs = int(engine.setdefault("max_num_seqs", _DEFAULT_SEQS))
    threads = engine.get("num_threads")
    ongoing = 2 * seqs if max_ongoing_requests is None else max_ongoing_requests
    queued = ongoing if max_queued_requests is None else max_queued_requests
    if policy not in POLICIES:
        raise ValidationError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}", "policy")
    for name, value, least in (
        ("num_replicas", num_replicas, 1),
        ("max_ongoing_requests", ongoing, 1),
        ("max_queued_requests", queued, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValidationError(f"{name} must be a whole number, at least {least}, got {value!r}", name)
    given = {"served_model_names": (Path(model).name,), "max_num_queued_reqs": ongoing, **(server or {})}
    try:
        settings = Settings(model=str(model), engine=engine, **given)
    except TypeError as error:
        raise ValidationError(f"server: {error}", "server") from None
    options: dict[str, Any] = {
        "name": "engine",
        "max_ongoing_requests": ongoing,
        "max_queued_requests": queued,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": shutdown_timeout,
        "ray_actor_options": {"num_cpus": threads or 1, **(actor_options or {})},
        "request_router_config": serve.config.RequestRouterConfig(
            request_router_class="lynx_rt.integrations.ray_router.Router",
            request_router_kwargs={"policy": policy, "fill": seqs},
        ),
    }
    if autoscaling is None:
        options["num_replicas"] = num_replicas
    else:
        options["autoscaling_config"] = {"target_ongoing_requests": seqs, **autoscaling}
    engines = serve.deployment(Replica).options(**options, **(deployment_options or {})).bind(settings)
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="ingress",
        max_ongoing_requests=100_000,  # the engines' limits are those that hold
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=shutdown_timeout,
        ray_actor_options={"num_cpus": 0, **(ingress_options or {})},
    )
    return ingress.bind(engines, settings.max_body_bytes)


def app(args: Mapping[str, Any]) -> serve.Application:
    """build_app() for Serve's configuration files: import_path: lynx_rt.integrations.ray_serve:app, args: {model: ..., num_replicas: 2}."""
    options = dict(args)
    if "model" not in options:
        raise ValidationError("args must have model", "model")
    return build_app(options.pop("model"), **options)
