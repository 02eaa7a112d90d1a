"""Cores and memory that this process may use."""

from __future__ import annotations


def usable_cores() -> int:
    """Returns the number of cores by affinity and CPU quota."""
    from lynx_rt import _C

    return int(_C.build_info()["usable_cores"])


def available_memory_bytes() -> int:
    """Returns the bytes that can be allocated without swapping, within the limits of the control groups and of the process."""
    from lynx_rt import _C

    return int(_C.build_info()["available_memory_bytes"])
