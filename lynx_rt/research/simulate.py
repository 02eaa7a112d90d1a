"""Runs expert selection on recorded router logits, without the model: any policy, at any batch size, in milliseconds.

    recording = Recording.load("routing.npz")
    for batch in (1, 4, 16, 64):
        print(simulate(recording, "lynx:alpha=4", batch=batch).active)

The counts are those of an engine that decodes the same rows, because the code is the same. A simulation cannot show that another
policy would have led to other hidden states, and so to other logits, from the next layer on.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lynx_rt.engine.outputs import LayerStats, layer_mean
from lynx_rt.errors import ValidationError
from lynx_rt.research.admission import admitted_steps, parse_admission
from lynx_rt.research.recording import Recording, offsets_of

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True, eq=False)
class Simulation:
    """Results of one policy on the steps of one recording. Means are over steps (retained mass: over rows) and over layers."""

    selection: str
    batch: int | None  # None = the steps as recorded
    admission: str
    layers: list[LayerStats]  # sums over steps, like an engine's
    order: NDArray[np.int64]  # [M] rows of the recording, step after step
    offsets: NDArray[np.int64]  # [steps + 1] into `order`
    routed_experts: NDArray[np.int16]  # [M, L, k] in that order, -1 = none
    seconds: float

    @property
    def num_steps(self) -> int:
        """Number of decode-only steps."""
        return len(self.offsets) - 1

    @property
    def rows_per_step(self) -> float:
        """Mean rows of a step."""
        return len(self.order) / max(self.num_steps, 1)

    @property
    def union_before(self) -> float:
        """Mean experts that the model's own routing reads."""
        return layer_mean(self.layers, "union_before", "steps")

    @property
    def active(self) -> float:
        """Mean experts that are read."""
        return layer_mean(self.layers, "active", "steps")

    @property
    def retained_mass(self) -> float:
        """Share of the rows' own gate mass that is kept, 0..1."""
        return layer_mean(self.layers, "retained_mass", "rows")

    @property
    def remapped_share(self) -> float:
        """Share of the (row, slot) pairs that lost their own choice, 0..1."""
        return layer_mean(self.layers, "remapped_pairs", "rows") / max(int(self.routed_experts.shape[-1]), 1)

    @property
    def guard_share(self) -> float:
        """Share of steps that fell back to the model's own routing, 0..1."""
        return layer_mean(self.layers, "guard_hits", "steps")

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures in JSON's types, without the arrays."""
        from dataclasses import asdict

        means = ("rows_per_step", "union_before", "active", "retained_mass", "remapped_share", "guard_share")
        return {
            "selection": self.selection,
            "batch": self.batch,
            "admission": self.admission,
            "steps": self.num_steps,
            **{name: getattr(self, name) for name in means},
            "seconds": self.seconds,
            "layers": [asdict(layer) for layer in self.layers],
        }


def simulate(
    recording: Recording,
    selection: str,
    *,
    batch: int | None = None,
    seed: int | None = None,
    admission: str = "first_come",
) -> Simulation:
    """Runs a policy, or a plan by layers, on decode steps made of the recording's rows.

    batch: None = the steps as they were recorded; else continuous batching over that many slots, each of which takes one
    request's rows in order and then the next request. seed: None = requests in the order in which they were recorded; else
    drawn. admission: which waiting request takes a free slot (lynx_rt.research.admission); all wait from the start. Raises
    ValidationError for a policy that the model of the recording does not allow.
    """
    from lynx_rt import _C

    order, offsets = steps_of(recording, batch, seed, admission)
    start = time.perf_counter()
    result = _C.simulate(recording.native(), selection, order, offsets)
    seconds = time.perf_counter() - start
    layers = [LayerStats(**layer) for layer in result["layers"]]
    return Simulation(selection, batch, admission, layers, order, offsets, result["routed_experts"], seconds)


def steps_of(
    recording: Recording, batch: int | None, seed: int | None, admission: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (order, offsets): the rows, step after step, as simulate() forms them."""
    rule = parse_admission(admission)
    if rule.kind != "first_come" and (batch is None or seed is not None):
        raise ValidationError(f"admission: {admission} needs a batch size, and no seed", "admission")
    if batch is None:
        return np.arange(len(recording), dtype=np.int64), recording.step_offsets
    if rule.kind == "first_come":
        return batched_steps(recording.request, batch, seed)
    return admitted_steps(recording, batch, rule)


def batched_steps(
    request: Sequence[int] | NDArray[np.uint64], batch: int, seed: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (order, offsets): the rows, step after step, when `batch` slots work through the requests.

    The rows of a step are in order of slot.

    request: [N] number of the request of each row.
    """
    _, first, number = np.unique(np.asarray(request), return_index=True, return_inverse=True)
    by_request = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
    queue = np.argsort(first)  # in the order of the recording
    if seed is not None:
        queue = np.random.default_rng(seed).permutation(len(queue))
    slots = [(0, slot) for slot in range(batch)]  # (first free step, slot)
    order, step, place = [], [], []
    for index in queue:
        rows = by_request[index]
        begin, slot = heapq.heappop(slots)
        heapq.heappush(slots, (begin + len(rows), slot))
        order.append(rows)
        step.append(begin + np.arange(len(rows)))
        place.append(np.full(len(rows), slot))
    if not order:
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    steps = np.concatenate(step)
    ranked = np.lexsort((np.concatenate(place), steps))
    return np.concatenate(order)[ranked].astype(np.int64), offsets_of(steps[ranked].astype(np.int64))
