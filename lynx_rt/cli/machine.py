"""What this process may use of the machine."""

from __future__ import annotations


def usable_cores() -> int:
    """Cores by affinity and CPU quota."""
    from lynx_rt import _C

    return int(_C.build_info()["usable_cores"])


def available_memory_bytes() -> int:
    """Memory that can be had without swapping, within the limits of the control groups and of the process."""
    from lynx_rt import _C

    return int(_C.build_info()["available_memory_bytes"])
