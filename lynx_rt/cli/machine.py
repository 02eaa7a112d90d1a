"""CPU, threads and memory that this process may use."""

from __future__ import annotations

from typing import Any


def cpu_threads(num_threads: int | None = None) -> dict[str, Any]:
    """Returns the threads that an engine on the CPU has, and what they were chosen by.

    num_threads: as asked of the engine; None = its default, for which cores that differ are measured (some milliseconds).
    """
    from lynx_rt import _C

    return _C.cpu_threads(num_threads or 0)


def measured_on(device: str) -> str:
    """Returns what a measurement has to name: the CPU's model, and the engine's device with instruction set and threads."""
    from lynx_rt import _C

    return f"{_C.build_info()['cpu_model']}; {device}"


def available_memory_bytes() -> int:
    """Returns the bytes that can be allocated without swapping, within the limits of the control groups and of the process."""
    from lynx_rt import _C

    return int(_C.build_info()["available_memory_bytes"])
