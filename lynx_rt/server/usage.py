"""The objects of answers that count: usage, times, progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lynx_rt.engine.outputs import PromptProgress
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


def lynx_object(request: Request, policy: str) -> dict[str, Any]:
    """Returns what answers say about expert selection, and the request's times in milliseconds."""
    metrics = request.metrics()
    exact = request.params.expert_selection is not None or policy == "topk"
    return {
        "policy": policy,
        "exact": exact,
        "queue_ms": _ms(metrics.queue_time),
        "time_to_first_token_ms": _ms(metrics.ttft),
        "generation_ms": _ms(metrics.decode_time),
        "tokens_per_second": metrics.generation_tps and round(metrics.generation_tps, 2),
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
