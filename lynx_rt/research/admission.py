"""Orders in which waiting requests take free places of a batch, by the experts that they are expected to use.

Requests that use the same experts share reads. Source: the token scheduler of arXiv 2410.17954 (ExpertFlow), which makes groups of few
unique experts out of two batches by predicted routes. Here the choice is made whenever a place is free, among the first `window`
requests that wait:

- predicted, own: that one is admitted whose first row is expected to add the fewest experts to what the rows that run are expected to use;
- affinity: what an engine's admission="affinity" does (csrc/engine/admission.h): that one whose prompt is most like those that run.

A request that was passed over `skips` times comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lynx_rt.errors import ValidationError
from lynx_rt.research.predictors import parse_predictor, predict
from lynx_rt.research.recording import Recording, offsets_of, uses

_DEFAULTS = {"first_come": 1, "predicted": 64, "own": 64, "affinity": 128}  # of window and skips
_BUCKETS, _SCALE = 256, 4096  # of csrc/engine/admission.h

# Returns the place of the waiting request that fits the running ones. Lists of rows: each request's next one.
Choice = Callable[[Sequence[int], Sequence[int]], int]


@dataclass(frozen=True)
class Admission:
    """first_come: in order of arrival. predicted: by the token table. own: by the experts that rows will use: what no predictor beats.
    affinity: by the tokens of the prompts."""

    text: str
    kind: str = "first_come"
    window: int = 64
    skips: int = 64


def parse_admission(text: str) -> Admission:
    """Parses "first_come", "predicted:window=64,skips=64", "own", "affinity". Raises ValidationError (field admission)."""
    kind, _, rest = text.partition(":")
    if kind not in _DEFAULTS:
        raise ValidationError(f"admission: expected one of {', '.join(_DEFAULTS)}, got {kind!r}", "admission")
    values = {"window": _DEFAULTS[kind], "skips": _DEFAULTS[kind]}
    for piece in filter(None, rest.split(",")):
        key, _, value = piece.partition("=")
        if kind == "first_come" or key not in values or not value.isdigit() or int(value) < 1:
            raise ValidationError(f"admission: {text}: unexpected {piece!r}", "admission")
        values[key] = int(value)
    return Admission(text, kind, **values)


def routes(recording: Recording, admission: Admission) -> NDArray[np.bool_]:
    """Returns [N, L * E]: the experts that each row is expected to use. The token table learns from the first half of the requests."""
    if admission.kind == "own":
        return uses(recording).reshape(len(recording), -1) > 0
    _, first, number = np.unique(recording.request, return_index=True, return_inverse=True)
    half = np.argsort(first)[: len(first) // 2]
    scores = predict(recording, parse_predictor("token_table"), np.isin(number, half))
    assert scores is not None
    best = np.argpartition(-scores, recording.num_experts_per_tok - 1, axis=-1)[..., : recording.num_experts_per_tok]
    out = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(out, best, True, -1)
    return out.reshape(len(recording), -1)


def signatures(recording: Recording) -> NDArray[np.int64]:
    """Returns [requests, 256]: the prompts' tokens by buckets of a hash, scaled to length 4096, as csrc/engine/admission.cc has them.

    Requests in order of their number. Raises ValidationError where the recording lacks prompts.
    """
    numbers = np.unique(recording.request)
    if not np.isin(numbers, recording.prompt_request).all():
        raise ValidationError(
            "admission: affinity needs the prompts, which the recording lacks; record it again with this version",
            "admission",
        )
    known = np.isin(recording.prompt_request, numbers)
    mixed = recording.prompt_token[known].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    place = np.searchsorted(numbers, recording.prompt_request[known]) * _BUCKETS + (mixed >> np.uint64(56)).astype(
        np.int64
    )
    counts = np.bincount(place, minlength=len(numbers) * _BUCKETS).reshape(len(numbers), _BUCKETS).astype(np.float64)
    lengths = np.sqrt((counts**2).sum(1, keepdims=True))
    out: NDArray[np.int64] = np.rint(_SCALE * counts / lengths).astype(np.int64)
    return out


def choice_of(recording: Recording, admission: Admission) -> Choice:
    """Returns the choice that an order makes. Raises ValidationError where the recording lacks what it needs."""
    if admission.kind == "affinity":
        return _most_alike(recording)
    if admission.kind == "first_come":
        return lambda waiting, running: 0
    return fewest_added(routes(recording, admission))


def fewest_added(expected: NDArray[np.bool_]) -> Choice:
    """Returns the choice of the row that adds the fewest experts. expected: [N, any number] those that each row may use, see routes()."""
    return lambda waiting, running: int((expected[waiting] & ~expected[running].any(0)).sum(1).argmin())


def _most_alike(recording: Recording) -> Choice:
    number = np.unique(recording.request, return_inverse=True)[1]
    signature = signatures(recording)
    common = signature.sum(0) // max(len(signature), 1)

    def choose(waiting: Sequence[int], running: Sequence[int]) -> int:
        if not running:
            return 0
        wanted = signature[number[running]].sum(0) - len(running) * common
        return int((signature[number[waiting]] @ wanted).argmax())

    return choose


def admitted_steps(
    recording: Recording, batch: int, admission: Admission
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (order, offsets) as batched_steps() does, when all requests wait from the start, in the order in which they were recorded,
    and free places are given by `admission`."""
    choose = choice_of(recording, admission)
    _, first, number = np.unique(recording.request, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1]) if len(number) else []
    waiting = [rows[index].tolist() for index in np.argsort(first)]
    passed = [0] * len(waiting)
    slots: list[list[int]] = [[] for _ in range(batch)]  # the rows that each still has to run
    order: list[int] = []
    step: list[int] = []
    now = 0
    while waiting or any(slots):
        for place in range(batch):
            if slots[place] or not waiting:
                continue
            running = [slot[0] for slot in slots if slot]
            window = [request[0] for request in waiting[: admission.window]]
            chosen = 0 if passed[0] >= admission.skips else choose(window, running)
            passed[:chosen] = [count + 1 for count in passed[:chosen]]
            del passed[chosen]
            slots[place] = waiting.pop(chosen)
        ran = [slot.pop(0) for slot in slots if slot]
        order += ran
        step += [now] * len(ran)
        now += 1
    return np.array(order, np.int64), offsets_of(np.array(step, np.int64))
