"""What a model that is larger than the memory can be expected to do: how many experts fit, and how fast a request is decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_rt.errors import ValidationError

_UNITS = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
# Share of an expert's uses that find it in memory, by the share of experts in memory: one request, the most used experts stay (lfu).
# Measured on lynx-nano (4 of 32 experts, trained with a load-balancing loss). Other models differ; flat routers hit less.
_HITS = ((0.0, 0.0), (0.10, 0.30), (0.25, 0.60), (0.50, 0.84), (0.75, 0.96), (1.0, 1.0))
_CONTEXT = 4096  # tokens whose K and V are counted


@dataclass(frozen=True)
class TierPlan:
    """One request at a time on the CPU. Sizes are bytes, rates per second."""

    expert_memory: int  # for experts; 0 = the rest alone does not fit
    resident_share: float  # of the experts, 0..1
    hit_rate: float  # by the curve of another model: an estimate
    read_per_token: float  # from the disk
    tokens_per_s: float | None  # at most; None where a rate is not known


def parse_size(text: str, field: str) -> int:
    """Parses "8GB", "512MiB" or a number of bytes. Raises ValidationError."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        size = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        size = -1.0
    if not 0 <= size < 2**63:
        raise ValidationError(f"{field} must be bytes, as 8GB, 512MiB or 1000000, got {text!r}", field)
    return int(size)


def hit_rate(resident_share: float) -> float:
    """Returns the expected share of uses that find their expert in memory."""
    right = min(bisect_right([share for share, _ in _HITS], resident_share), len(_HITS) - 1)
    (x0, y0), (x1, y1) = _HITS[right - 1], _HITS[right]
    return y0 + (y1 - y0) * (resident_share - x0) / (x1 - x0)


def plan(facts: Mapping[str, Any], option: Mapping[str, Any], memory: int, disk_rate: float | None) -> TierPlan:
    """Plans for `memory` bytes in all.

    facts, option: what `_C.inspect` says of a model, and of a `quantization`; with "read_bytes_per_s", the memory's rate.
    """
    rest = option["weight_bytes"] - option["expert_bytes"]
    kv = facts["kv_bytes_per_token"] * min(_CONTEXT, facts["max_position_embeddings"])
    left = max(0, memory - rest - kv)
    share = min(1.0, left / option["expert_bytes"]) if option["expert_bytes"] else 1.0
    used = option["expert_bytes"] * facts["num_experts_per_tok"] / facts["num_experts"] if facts["num_experts"] else 0
    read = used * (1 - hit_rate(share))
    rate = facts["read_bytes_per_s"]
    known = left > 0 and rate and (disk_rate or not read)
    seconds = option["bytes_per_token"] / rate + (read / disk_rate if read and disk_rate else 0) if known else None
    return TierPlan(min(left, option["expert_bytes"]), share, hit_rate(share), read, 1 / seconds if seconds else None)


def largest_file(model: str) -> Path | None:
    """Returns the file of a model's weights by which the disk's rate is measured."""
    path = Path(model)
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    return max(files, key=lambda file: file.stat().st_size, default=None)
