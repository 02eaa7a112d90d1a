"""What a model that is larger than the memory can be expected to do: how many experts fit, and how fast a request is decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Share of an expert's uses that find it in memory, by the share of experts in memory: one request, the most used experts stay (lfu).
# Measured on lynx-nano (4 of 32 experts, trained with a load-balancing loss). Other models differ; flat routers hit less.
_HITS = ((0.0, 0.0), (0.10, 0.30), (0.25, 0.60), (0.50, 0.84), (0.75, 0.96), (1.0, 1.0))


@dataclass(frozen=True)
class TierPlan:
    """What Engine(memory=...) does on the CPU, and the speed of one request at a time. Sizes are bytes, rates per second."""

    problem: str | None  # why there would be no engine; the rest is then 0
    kv_memory: int
    max_model_len: int  # tokens, as far as the KV cache goes
    expert_memory: int  # for experts
    resident_share: float  # of the experts, 0..1
    hit_rate: float  # by the curve of another model: an estimate
    read_per_token: float  # from the disk
    tokens_per_s: float | None  # at most; None where a rate is not known


def hit_rate(resident_share: float) -> float:
    """Returns the expected share of uses that find their expert in memory."""
    right = min(bisect_right([share for share, _ in _HITS], resident_share), len(_HITS) - 1)
    (x0, y0), (x1, y1) = _HITS[right - 1], _HITS[right]
    return y0 + (y1 - y0) * (resident_share - x0) / (x1 - x0)


def plan(
    facts: Mapping[str, Any], option: Mapping[str, Any], division: Mapping[str, Any], disk_rate: float | None
) -> TierPlan:
    """Makes a plan of how C++ divides the memory.

    facts, option: what `_C.inspect` says of a model, and of a `quantization`; with "read_bytes_per_s", the memory's rate.
    division: of the same quantization, by `_C.foretell_memory`.
    """
    if division["error"] is not None:
        return TierPlan(division["error"], 0, 0, 0, 0.0, 0.0, 0.0, None)
    experts = division["num_experts"]
    share = division["slots"] / experts if experts else 1.0
    used = option["expert_bytes"] * facts["num_experts_per_tok"] / facts["num_experts"] if experts else 0
    read = used * (1 - hit_rate(share))
    rate = facts["read_bytes_per_s"]
    known = rate and (disk_rate or not read)
    seconds = option["bytes_per_token"] / rate + (read / disk_rate if read and disk_rate else 0) if known else None
    return TierPlan(
        None,
        division["kv"],
        division["max_model_len"],
        division["experts"],
        share,
        hit_rate(share),
        read,
        1 / seconds if seconds else None,
    )


def largest_file(model: str) -> Path | None:
    """Returns the file of a model's weights by which the disk's rate is measured."""
    path = Path(model)
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    return max(files, key=lambda file: file.stat().st_size, default=None)
