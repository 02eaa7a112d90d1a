"""The objects of answers that count: usage, times, progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lynx_rt.engine.outputs import PromptProgress, RequestMetrics
from lynx_rt.engine.request import Request


def usage(requests: Sequence[Request], reasoning_tokens: int = 0) -> dict[str, Any]:
    """Returns the tokens so far. The prompt of several completions counts once."""
    prompt = sum(len(request.prompt_token_ids) for request in requests)
    generated = sum(completion.num_tokens for request in requests for completion in request.completions)
    cached = sum(request.completions[0].metrics.num_cached_tokens for request in requests)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def lynx_object(requests: Sequence[Request], policy: str) -> dict[str, Any]:
    """Returns what answers say about expert selection, and the first request's times in milliseconds.

    policy: the server's, at the end of the answer.
    """
    selected = sum(request.metrics().num_selected_rows for request in requests)
    metrics = requests[0].metrics()
    return {
        "policy": policy,
        "exact": selected == 0,
        "selected_rows": selected,
        "queue_ms": _ms(metrics.queue_time),
        "time_to_first_token_ms": _ms(metrics.ttft),
        "generation_ms": _ms(metrics.decode_time),
        "tokens_per_second": metrics.generation_tps and round(metrics.generation_tps, 2),
    }


def timings_object(metrics: RequestMetrics) -> dict[str, Any]:
    """Returns llama-server's timings: of the prompt without its cached tokens, and of the tokens after the first."""
    read, made = metrics.num_prompt_tokens - metrics.num_cached_tokens, max(metrics.num_generation_tokens - 1, 0)
    end = metrics.finish_time or time.monotonic()
    decode = end - metrics.first_token_time if metrics.first_token_time else 0.0
    return {
        "cache_n": metrics.num_cached_tokens,
        **_pace("prompt", read, metrics.prefill_time or 0.0, read),
        **_pace("predicted", metrics.num_generation_tokens, decode, made),
    }


def _pace(name: str, count: int, seconds: float, timed: int) -> dict[str, Any]:
    """timed: those of the tokens that the seconds were needed for."""
    return {
        f"{name}_n": count,
        f"{name}_ms": _ms(seconds),
        f"{name}_per_token_ms": _ms(seconds / timed) if timed else None,
        f"{name}_per_second": round(timed / seconds, 2) if seconds else None,
    }


def progress_object(progress: PromptProgress) -> dict[str, Any]:
    """Returns llama-server's prompt_progress. `processed` counts the cached tokens too."""
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.computed,
        "time_ms": _ms(progress.seconds),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
