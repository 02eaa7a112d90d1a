"""A memory cgroup for benchmarks: v1 or v2, where root may make one. Its limit counts the page cache too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """Yields the file to which a process of the group writes its number. Raises OSError where none can be made."""
    root = Path("/sys/fs/cgroup")
    v1 = root / "memory"
    folder = (v1 if v1.is_dir() else root) / "lynx_rt_bench"
    folder.mkdir(exist_ok=True)
    (folder / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")).write_text(str(limit))
    try:
        yield folder / "cgroup.procs"
    finally:
        folder.rmdir()


@contextmanager
def memory_limit(limit: int | None) -> Iterator[None]:
    """Keeps what this process takes from now on below `limit` bytes; None = does nothing. What it has taken before does not count under
    v1. Raises OSError where no cgroup can be made."""
    if limit is None:
        yield
        return
    with memory_cgroup(limit) as procs:
        home = procs.parents[1] / "cgroup.procs"
        procs.write_text(str(os.getpid()))
        try:
            yield
        finally:
            home.write_text(str(os.getpid()))


def drop_page_cache() -> None:
    """Writes what is dirty, and empties the page cache. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
