"""Follows one request of the engine for metrics and traces."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.engine.request import Request
from lynx_rt.errors import QueueFullError, ValidationError
from lynx_rt.server.metrics import Metrics
from lynx_rt.server.tracing import Tracing


class RequestMeter:
    """Counts what a request does as its outputs are read. Used by one thread; raises nothing.

    headers: of the HTTP request, names in lower case.  operation: "chat" or "text_completion".
    """

    def __init__(
        self, metrics: Metrics, tracing: Tracing, request: Request, headers: Mapping[str, str], operation: str
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._request = request
        self._headers = headers
        self._operation = operation
        self._last: dict[int, float] = {}  # index of a completion -> when its last tokens came

    def note(self, delta: CompletionDelta) -> None:
        """Takes in what a completion has grown by."""
        count = len(delta.token_ids)
        if not count:
            return
        now, last = time.monotonic(), self._last.get(delta.index)
        if last is None:
            if not self._last:
                self._metrics.on_accepted()
                self._metrics.on_first_token(self._request.metrics())
            last = self._request.completions[delta.index].metrics.first_token_time
            count -= 1  # more than one: the event loop ran late
        self._last[delta.index] = now
        if count:
            self._metrics.on_tokens(count, now - last)

    def end(self, cause: str, attributes: Mapping[str, Any] | None = None) -> None:
        """The request is over: it has finished, was refused, or was ended because of `cause` (metric_names.ABORTED_REASONS).

        attributes: further ones of its span.
        """
        request, metrics = self._request, self._metrics
        if isinstance(request.error, QueueFullError):
            metrics.on_rejected(request.error.field or "queue_full")
            return
        if isinstance(request.error, ValidationError):
            return  # never queued
        if not self._last:
            metrics.on_accepted()
        output = request.take_output()
        if output.finished and request.error is None:
            metrics.on_finished(output, request.params, cause)
        else:
            metrics.on_aborted("error" if request.error is not None else cause)
        self._tracing.on_end(output, request.params, self._headers, operation=self._operation, attributes=attributes)
