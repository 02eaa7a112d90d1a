"""What all handlers of a server share: its settings, the engine once it is loaded, and who is let in."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from lynx_rt.errors import ValidationError
from lynx_rt.server.errors import ApiError
from lynx_rt.server.expert_windows import ExpertWindows
from lynx_rt.server.fetch import Fetcher
from lynx_rt.server.metrics import Metrics
from lynx_rt.server.settings import Settings
from lynx_rt.server.tracing import Tracing
from lynx_rt.text.response import ResponseFormat

if TYPE_CHECKING:
    from lynx_rt.engine.engine import Engine

_ENCODERS = 2  # threads that render and tokenize long prompts
_MAX_RETRY_AFTER = 60  # seconds; openai-python gives up at once above 120


class ServerState:
    """Used in the event loop's thread only, but for the fields that loading writes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.engine: Engine | None = None
        self.phase = "starting"  # "loading", "ready", "draining" or "failed"
        self.load_progress = 0.0  # share of the weights that are copied or quantised
        self.load_started = time.monotonic()
        self.load_error: str | None = None
        self.policy = "topk"  # kept here, because asking the engine may wait for a step
        self.num_sequences = 0  # completions in flight
        self.generations: set[Any] = set()  # of requests in flight
        self.metrics = Metrics(None, settings.served_model_names[0], per_layer=settings.metrics_per_layer)
        self.tracing = Tracing(settings.otlp_traces_endpoint, settings.served_model_names[0])
        self.num_moe_layers = 0
        self.memory_bandwidth: float | None = None  # bytes per second that this machine reads; None = not measured
        self.expert_windows: ExpertWindows | None = None
        self.fetcher = Fetcher(settings.allowed_media_domains, settings.media_timeout, settings.max_media_bytes)
        self.format = ResponseFormat()  # of the model's answers
        self.encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="lynx_rt-encode")
        self._seconds_per_finish = 1.0

    # Engine

    def ready_engine(self) -> Engine:
        """Returns the engine; raises ApiError while there is none, or no new request is taken."""
        if self.engine is not None and self.phase == "ready":
            return self.engine
        if self.phase == "failed":
            raise ApiError(503, f"the model could not be loaded: {self.load_error}", code="load_failed")
        if self.phase == "draining":
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)
        raise ApiError(503, "the model is being loaded", code="loading", retry_after=5)

    def set_ready(self, engine: Engine) -> None:
        """Takes a loaded engine. Raises ValidationError where the settings do not fit its model."""
        if self.settings.thinking_token_budget is not None and engine.response_format.reasoning_tags is None:
            raise ValidationError(
                "--thinking-token-budget needs a model whose reasoning ends with a tag; this one's reasoning parser is "
                f"{engine.response_format.reasoning_parser or 'none'}",
                "thinking_token_budget",
            )
        self.engine = engine
        self.policy = engine.expert_selection
        self.num_moe_layers = engine.model_config["num_moe_layers"]
        self.format = engine.response_format
        self.expert_windows = ExpertWindows(engine)
        self.metrics.attach(engine)
        self.metrics.set_queue_limit(self.max_sequences - self.max_running)
        engine.on_step(self.metrics.on_step)
        engine.inputs.on_grammar_compile(self.metrics.on_grammar_compile)
        self.phase = "ready"

    def model_name(self, requested: str | None) -> str:
        """Returns the name that answers report. Raises ApiError 404 for a model that is not served."""
        names = self.settings.served_model_names
        if not requested:
            return names[0]
        if requested in names:
            return requested
        raise ApiError(404, f"The model `{requested}` does not exist.", param="model", code="model_not_found")

    # Admission

    @property
    def max_running(self) -> int:
        return int(self.settings.engine.get("max_num_seqs") or 128)

    @property
    def max_sequences(self) -> int:
        """Completions that may be in flight: running and waiting ones."""
        queued = self.settings.max_num_queued_reqs
        return self.max_running + (4 * self.max_running if queued is None else queued)

    def check_room(self, count: int) -> None:
        """Raises ApiError 503, with the time after which a retry makes sense, where `count` more completions are too many."""
        if count > self.max_sequences - self.num_sequences and self.num_sequences > 0:
            self.metrics.on_rejected("max_num_queued_reqs")
            raise self.overloaded(f"{self.num_sequences} completions are in flight, the limit is {self.max_sequences}")

    def admit(self, count: int) -> Admission:
        """Lets `count` completions in, or raises ApiError."""
        self.check_room(count)
        return Admission(self, count)

    def overloaded(self, reason: str) -> ApiError:
        depth = self.num_sequences
        wait = min(_MAX_RETRY_AFTER, max(1, math.ceil(depth * self._seconds_per_finish)))
        extra = {"queue_depth": depth}
        return ApiError(503, f"the queue is full: {reason}", code="queue_full", retry_after=wait, extra=extra)

    def note_finish(self, seconds: float, count: int) -> None:
        """Learns how fast places become free. seconds: of a request.  count: completions that ran beside it."""
        self._seconds_per_finish += 0.1 * (seconds / max(count, 1) - self._seconds_per_finish)

    def cut_off(self) -> None:
        """Ends all completions; their clients get finish_reason "abort"."""
        for generation in list(self.generations):
            generation.abort("drain")

    def close(self) -> None:
        """Frees the engine and ends all threads."""
        self.encoders.shutdown(wait=False, cancel_futures=True)
        self.tracing.close()
        self.metrics.close()
        if self.engine is not None:
            self.engine.on_step(None)
            self.engine.close()

    # Health

    def health_fault(self) -> str | None:
        """Returns why this process should be restarted; None where it is well."""
        if self.phase == "failed":
            return f"the model could not be loaded: {self.load_error}"
        if self.engine is None:
            return None
        stalled = self.engine.stalled_seconds
        if stalled > self.settings.watchdog_seconds:
            return f"no step has ended for {stalled:.0f} s, while requests are in flight"
        return None

    def readiness(self) -> dict[str, Any]:
        """Returns the body of /ready."""
        body: dict[str, Any] = {"phase": self.phase}
        if self.phase in ("starting", "loading"):
            seconds = time.monotonic() - self.load_started
            body["done"] = round(self.load_progress, 3)
            body["seconds"] = round(seconds, 1)
            if 0 < self.load_progress < 1:
                body["eta_s"] = round(seconds * (1 - self.load_progress) / self.load_progress, 1)
        elif self.phase == "failed":
            body["error"] = self.load_error
        else:
            body["num_sequences"] = self.num_sequences
        return body


class Admission:
    """Places of one request's completions; `leave` gives them back. Idempotent."""

    def __init__(self, state: ServerState, count: int) -> None:
        self._state = state
        self._count = count
        self._start = time.monotonic()
        state.num_sequences += count

    def leave(self) -> None:
        if self._count:
            self._state.note_finish(time.monotonic() - self._start, self._state.num_sequences)
            self._state.num_sequences -= self._count
            self._count = 0


def state_of(request: Request) -> ServerState:
    """Returns the state of the server that a request came to."""
    state: ServerState = request.app.state.server
    return state
