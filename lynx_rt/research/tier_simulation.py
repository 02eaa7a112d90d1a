"""Simulates a model whose experts are partly on the disk, on recorded router logits: what each policy reads, and how long steps take.

    recording = Recording.load("routing.npz")
    tier = Tier(expert_bytes=2_400_000, disk_rate=1e9, expert_seconds=1e-4, layer_seconds=2e-4)
    for policy in ("lfu", "lru", "belady"):
        print(simulate_tier(recording, tier, policy=policy, residents=0.25, batch=4).misses)

Which experts stay is decided by the code of the engine, so that a simulation counts what an engine reads that decodes the same rows. Time
is that of a virtual clock (csrc/research/tier_clock.h): one processor, one disk.

The first part of the steps fills the caches, and is what static lists and predictors are made from. Counts are of the rest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lynx_rt.errors import ValidationError
from lynx_rt.research.predictors import Predictor, parse_predictor, predict, prompt_uses
from lynx_rt.research.recording import Recording, uses
from lynx_rt.research.simulate import steps_of
from lynx_rt.research.tensor_file import write_tensors


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The machine of the virtual clock. Raises ValidationError that names the field."""

    expert_bytes: int  # of one expert's record
    disk_rate: float = 1e9  # bytes per second
    expert_seconds: float = 1e-4  # to compute one expert, for all of its rows
    layer_seconds: float = 2e-4  # of a layer before its experts are known: attention and router
    measured: float = 0.5  # share of the steps that counts are of: the last ones

    def __post_init__(self) -> None:
        for name, least in (("expert_bytes", 1), ("disk_rate", 1), ("expert_seconds", 0), ("layer_seconds", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValidationError(f"{name} must be at least {least}, got {getattr(self, name)}", name)
        if not 0 < self.measured <= 1:
            raise ValidationError(f"measured must be above 0, at most 1, got {self.measured}", "measured")


@dataclass(slots=True, eq=False, kw_only=True)
class TierSimulation:
    """Counts of one variant, in the measured steps. L MoE layers; arrays are [steps, L]."""

    selection: str
    batch: int | None  # None = the steps as recorded
    residents: float
    policy: str
    prefetch: str
    admission: str
    tier: Tier
    used: NDArray[np.int32]  # experts of a layer and step
    misses: NDArray[np.int32]  # of these not resident
    reads: NDArray[np.int32]  # experts that were read because the layer needed them; ring: all
    guessed: NDArray[np.int32]  # experts that the predictor named
    guessed_used: NDArray[np.int32]  # of these used
    ahead: NDArray[np.int32]  # reads that were asked for ahead of their layer, begun or not
    needed: NDArray[np.int32]  # of these needed
    in_time: NDArray[np.int32]  # of these there before the layer knew its experts
    seconds: NDArray[np.float64]  # [steps]
    wait: NDArray[np.float64]  # [steps] seconds in which there was nothing to compute
    wasted: NDArray[np.float64]  # [steps] seconds of the disk for what was not needed
    disk: NDArray[np.float64]  # [steps] seconds in which the disk read
    retained_mass: float  # share of the rows' own gate mass that is kept, 0..1
    rows: int

    @property
    def hit_rate(self) -> float:
        return 1 - _ratio(self.misses, self.used)

    @property
    def there(self) -> float:
        """Share of the used experts that were in memory when their layer knew them, those that were read ahead in time with the hits."""
        return 1 - _ratio(self.misses - self.in_time, self.used)

    @property
    def misses_per_layer(self) -> float:
        """Mean misses of a layer and step."""
        return float(self.misses.mean()) if self.misses.size else 0.0

    @property
    def bytes_per_step(self) -> float:
        """Mean bytes that a step reads, in vain or not."""
        return _mean(self.disk) * self.tier.disk_rate

    @property
    def tokens_per_s(self) -> float:
        return self.rows / max(float(self.seconds.sum()), 1e-12)

    @property
    def recall(self) -> float:
        """Share of the used experts that the predictor named, in the layers of which it says something."""
        layers = self.guessed.any(axis=0)
        return _ratio(self.guessed_used[:, layers], self.used[:, layers])

    @property
    def precision(self) -> float:
        """Share of the reads ahead that were needed."""
        return _ratio(self.needed, self.ahead)

    @property
    def found(self) -> float:
        """Share of the misses whose reads were asked for ahead."""
        return _ratio(self.needed, self.misses)

    @property
    def in_time_share(self) -> float:
        """Share of the needed reads ahead that waited for nobody."""
        return _ratio(self.in_time, self.needed)

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures in JSON's types, and the misses of each layer."""
        names = (
            "hit_rate",
            "there",
            "misses_per_layer",
            "bytes_per_step",
            "tokens_per_s",
            "recall",
            "precision",
            "found",
            "in_time_share",
        )
        return {
            **{
                name: getattr(self, name)
                for name in ("selection", "batch", "residents", "policy", "prefetch", "admission")
            },
            "steps": len(self.seconds),
            "used_per_layer": float(self.used.mean()) if self.used.size else 0.0,
            **{name: getattr(self, name) for name in names},
            "retained_mass": self.retained_mass,
            **{f"{name}_ms": 1e3 * _mean(getattr(self, name)) for name in ("seconds", "wait")},
            "wasted_bytes_per_step": _mean(self.wasted) * self.tier.disk_rate,
            "layers": [
                {"used": _mean(used), "misses": _mean(misses)}
                for used, misses in zip(self.used.T, self.misses.T, strict=True)
            ],
        }


class TierSimulator:
    """Runs variants on the same steps of one recording; what predictors and static lists learn is kept between runs."""

    def __init__(
        self,
        recording: Recording,
        tier: Tier,
        *,
        batch: int | None = None,
        seed: int | None = None,
        admission: str = "first_come",
    ) -> None:
        """batch, seed: as simulate() takes them. admission: see lynx_rt.research.admission; it needs a batch, and no seed."""
        self._recording, self._tier, self._batch, self._admission = recording, tier, batch, admission
        self._order, self._offsets = steps_of(recording, batch, seed, admission)
        steps = len(self._offsets) - 1
        self._first = min(steps - round(tier.measured * steps), steps)
        # Rows to learn from: those of requests that end before the measured steps.
        later = np.unique(recording.request[self._order[self._offsets[self._first] :]])
        self._train = ~np.isin(recording.request, later)
        self._scores: dict[str, NDArray[np.float32] | None] = {}
        self._static: list[list[list[int]]] | None = None

    def run(self, selection: str, policy: str, residents: float, prefetch: str = "none") -> TierSimulation:
        """policy: as expert_policy of an Engine; also "static" without a file, from the uses in the steps before the measured
        ones, "belady", "ring"; "plec": ExpertFlow's memory, which is driven by the guesses of `prefetch` (csrc/research/plec.h);
        "prefill:weight=10": lfu, to which the prompt of a request that joins counts as `weight` tokens, and whose residents are chosen
        anew then, since a prompt reads nearly all experts anyway (arXiv 2510.05497). prefetch: see lynx_rt.research.predictors. Raises
        ValidationError."""
        from lynx_rt import _C

        recording, tier, predictor = self._recording, self._tier, parse_predictor(prefetch)
        if policy == "plec" and not predictor.known_at_start:
            raise ValidationError(
                f"prefetch: plec needs guesses that are known when a step begins, got {prefetch}", "prefetch"
            )
        guesses = self._guesses(predictor)
        n = predictor.n or recording.num_experts_per_tok
        weight = _prefill_weight(policy)
        found = _C.simulate_tier(
            recording.native(),
            selection,
            self._order,
            self._offsets,
            policy="lfu" if weight else policy,
            residents=residents,
            seeds=self._seeds(weight) if weight else None,
            lists=self.static_lists() if policy == "static" else [],
            layer_seconds=tier.layer_seconds,
            expert_seconds=tier.expert_seconds,
            read_seconds=tier.expert_bytes / tier.disk_rate,
            guesses=guesses,
            num_guesses=n,
            distance=predictor.d,
        )
        mass = found.pop("retained_mass")[self._first :].sum()
        rows = len(self._order) - int(self._offsets[self._first])
        return TierSimulation(
            selection=selection,
            batch=self._batch,
            residents=residents,
            policy=policy,
            prefetch=prefetch,
            admission=self._admission,
            tier=tier,
            **{name: values[self._first :] for name, values in found.items()},
            retained_mass=float(mass) / max(rows * len(recording.layers), 1),
            rows=rows,
        )

    def static_lists(self) -> list[list[list[int]]]:
        """Returns [L][1][E]: the experts of each layer, those with the most uses first, by the steps before the measured ones."""
        if self._static is None:
            if not self._train.any():
                raise ValidationError(
                    "expert_policy: static has nothing to learn from; lower --measured", "expert_policy"
                )
            counts = uses(self._recording)[self._train].sum(0)
            self._static = [[np.argsort(-layer, kind="stable").tolist()] for layer in counts]
        return self._static

    def _seeds(self, weight: float) -> NDArray[np.float32]:
        """Returns [N, L, E]: uses in the prompt of each request's first row; 0 for other rows."""
        recording = self._recording
        out = np.zeros(recording.scores.shape, np.float32)
        _, first = np.unique(recording.request, return_index=True)
        out[first] = weight * prompt_uses(recording)
        return out

    def _guesses(self, predictor: Predictor) -> NDArray[np.float32] | None:
        key = f"{predictor.name} {predictor.decay} {predictor.file}"
        if key not in self._scores:
            self._scores[key] = predict(self._recording, predictor, self._train)
        return self._scores[key]


def simulate_tier(
    recording: Recording,
    tier: Tier,
    *,
    residents: float,
    selection: str = "topk",
    policy: str = "lfu",
    prefetch: str = "none",
    batch: int | None = None,
    seed: int | None = None,
) -> TierSimulation:
    """Runs one variant; see TierSimulator.run()."""
    return TierSimulator(recording, tier, batch=batch, seed=seed).run(selection, policy, residents, prefetch)


def save_static(path: str | os.PathLike[str], lists: Sequence[Sequence[Sequence[int]]]) -> None:
    """Writes static_lists() to the file that expert_policy="static:file=PATH" of an Engine reads."""
    write_tensors(path, {"experts": np.array([layer[0] for layer in lists], np.int32)})


def _prefill_weight(policy: str) -> float:
    """Returns the number of "prefill:weight=10", 0 for other policies."""
    name, _, rest = policy.partition(":")
    if name != "prefill":
        return 0
    key, _, value = rest.partition("=")
    if not rest:
        return 10
    try:
        weight = float(value) if key == "weight" else 0
    except ValueError:
        weight = 0
    if not 0 < weight < float("inf"):
        raise ValidationError(f"expert_policy: {policy}: expected prefill:weight=10, above 0", "expert_policy")
    return weight


def _ratio(part: NDArray[np.int32], whole: NDArray[np.int32]) -> float:
    return float(part.sum()) / max(float(whole.sum()), 1.0)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else 0.0
