"""The machine's rate of plain reading, with which the bytes that steps read are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lynx_rt.engine.engine import Engine

_LARGE_MODEL = 1 << 30  # bytes of weights; a small model stays in caches, and its start shall take no time
_PROBE_BYTES = 256 << 20
_RUNS = 3


def memory_bandwidth(engine: Engine, num_threads: int | None) -> float | None:
    """Returns bytes per second, measured in about a second while nothing else runs.

    None for a model that is not in this machine's memory, or is too small to be bound by it.
    num_threads: those of the engine; None = its default.
    """
    if not engine.device.startswith("cpu") or not is_bound_by_memory(engine.memory["weight"]):
        return None
    return measure_bandwidth(num_threads)


def is_bound_by_memory(weight_bytes: int) -> bool:
    """Whether decode steps of a model of that size read it from memory, and not from the caches."""
    return weight_bytes >= _LARGE_MODEL


def measure_bandwidth(num_threads: int | None = None) -> float:
    """Returns bytes per second, the best of three runs. num_threads: as of an engine on the CPU; None = its default."""
    from lynx_rt import _C

    available: int = _C.build_info()["available_memory_bytes"]
    probe = _C.BandwidthProbe(num_threads or 0, min(_PROBE_BYTES, available // 4))
    return 1e9 * max(probe.measure() for _ in range(_RUNS))
