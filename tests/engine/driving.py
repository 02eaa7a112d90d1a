"""Runs requests through a _C.Engine step by step, and collects the output of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lynx_rt import _C


@dataclass
class Job:
    """A request to make: when (in steps), of what, how."""

    prompt: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    arrival: int = 0


@dataclass
class Result:
    """All outputs of one request. Logprobs are Python floats made from float32, so == compares their bits."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str = ""
    num_cached_tokens: int = 0
    num_preemptions: int = 0

    @property
    def bits(self) -> tuple[Any, ...]:
        """The part that must not depend on the other requests of the batch."""
        return self.tokens, self.logprobs, self.prompt_logprobs, self.finish_reason


def engine(path: str, **options: Any) -> _C.Engine:
    return _C.Engine(path, **({"max_num_seqs": 16, "max_num_batched_tokens": 512, "num_threads": 1} | options))


def params(**options: Any) -> _C.SamplingParams:
    """Makes SamplingParams; by default greedy, and without an end of text."""
    p = _C.SamplingParams()
    for name, value in ({"temperature": 0.0, "ignore_eos": True, "max_tokens": 16} | options).items():
        setattr(p, name, value)
    return p


def record(results: Mapping[int, Result], outputs: Sequence[_C.StepOutput]) -> None:
    for o in outputs:
        r = results[o.request_id]
        assert r.finish_reason is None, "output after the end"
        r.tokens += o.token_ids
        r.logprobs += o.logprobs
        r.prompt_logprobs += o.prompt_logprobs
        r.finish_reason, r.stop_token_id, r.error = o.finish_reason, o.stop_token_id, o.error
        r.num_cached_tokens, r.num_preemptions = o.num_cached_tokens, o.num_preemptions


def run(
    e: _C.Engine,
    jobs: Sequence[Job],
    check: bool = False,
    result: type[Result] = Result,
    record: Callable[..., None] = record,
) -> list[Any]:
    """Runs all jobs to their end, each added at its arrival; `check` verifies the pages' bookkeeping after every step. `record` puts the
    outputs of a step into the `result` of each request."""
    results: dict[int, Result] = {}
    ids: dict[int, int] = {}
    step = 0
    while len(ids) < len(jobs) or e.has_unfinished():
        for i, job in enumerate(jobs):
            if job.arrival <= step and i not in ids:
                ids[i] = e.add_request(job.prompt, params(**job.options))
                results[ids[i]] = result()
        record(results, e.step())
        if check:
            e.check_integrity()
        step += 1
        assert step < 10_000, "the engine makes no progress"
    return [results[ids[i]] for i in range(len(jobs))]


def alone(path: str, jobs: Sequence[Job], **options: Any) -> list[Result]:
    """Runs each job alone, in an engine of its own without prefix cache."""
    return [run(engine(path, enable_prefix_caching=False, **options), [job])[0] for job in jobs]
