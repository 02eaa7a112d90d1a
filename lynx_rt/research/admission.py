"""Orders in which waiting requests take free places of a batch, by the experts that they are expected to use.

Requests that use the same experts share reads. Source: the token scheduler of arXiv 2410.17954 (ExpertFlow), which makes groups of few
unique experts out of two batches by predicted routes. Here the choice is made whenever a place is free: among the first `window`
requests that wait, that one is admitted whose first row is expected to add the fewest experts to what the rows that run are expected
to use. A request that was passed over `age` times comes next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lynx_rt.errors import ValidationError
from lynx_rt.research.predictors import parse_predictor, predict, uses
from lynx_rt.research.recording import Recording, offsets_of

_KINDS = ("fifo", "predicted", "own")


@dataclass(frozen=True)
class Admission:
    """fifo: first come, first served. predicted: by the token table. own: by the experts that rows will use: what no predictor beats."""

    text: str
    kind: str = "fifo"
    window: int = 64
    age: int = 64


def parse_admission(text: str) -> Admission:
    """Parses "fifo", "predicted:window=64,age=64", "own". Raises ValidationError (field admission)."""
    kind, _, rest = text.partition(":")
    values = {}
    for piece in filter(None, rest.split(",")):
        key, _, value = piece.partition("=")
        if kind == "fifo" or key not in ("window", "age") or not value.isdigit() or int(value) < 1:
            raise ValidationError(f"admission: {text}: unexpected {piece!r}", "admission")
        values[key] = int(value)
    if kind not in _KINDS:
        raise ValidationError(f"admission: expected one of {', '.join(_KINDS)}, got {kind!r}", "admission")
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


def admitted_steps(
    recording: Recording, batch: int, admission: Admission, expected: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (order, offsets) as batched_steps() does, when free places are given by `expected` [N, any number], see routes()."""
    _, first, number = np.unique(recording.request, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1]) if len(number) else []
    waiting = [rows[index] for index in np.argsort(first)]
    passed = [0] * len(waiting)
    slots: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * batch  # the rows that each still has to run
    order: list[int] = []
    step: list[int] = []
    now = 0
    while waiting or any(map(len, slots)):
        running = [slot[0] for slot in slots if len(slot)]
        union = expected[running].any(0)
        for place in range(batch):
            if len(slots[place]) or not waiting:
                continue
            window = expected[[request[0] for request in waiting[: admission.window]]]
            chosen = 0 if passed[0] >= admission.age else int((window & ~union).sum(1).argmin())
            passed[:chosen] = [count + 1 for count in passed[:chosen]]
            del passed[chosen]
            slots[place] = waiting.pop(chosen)
            union |= window[chosen]
        ran = [slot[0] for slot in slots if len(slot)]
        order += ran
        step += [now] * len(ran)
        slots = [slot[1:] for slot in slots]
        now += 1
    return np.array(order, np.int64), offsets_of(np.array(step, np.int64))
