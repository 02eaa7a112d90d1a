"""An engine has the threads that its affinity, quota and cpuset allow. tests/cpp/test_cgroup.cc tests the forms of limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

THREADS = """
import json, lynx_rt
from lynx_rt import _C
with lynx_rt.Engine(lynx_rt.shipped_model(), max_num_seqs=1, max_model_len=64) as engine:
    print(json.dumps({"device": engine.device, **_C.cpu_threads()}))
"""


def threads(limit: Callable[[], object]) -> dict[str, Any]:
    """Returns cpu_threads() of a process that calls `limit` first; its engine has as many."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, check=False, preexec_fn=limit
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert f", {found['num_threads']} threads," in found["device"]
    return found


@contextmanager
def group(controller: str, v1: dict[str, str], v2: dict[str, str]) -> Iterator[Path]:
    """A control group with these limits, two below the root. Skips where none may be made."""
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, kind, options = line.split()[4], line.split(" - ")[1].split()[0], line.split()[-1].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options):
            mounts[kind] = Path(mount)
    if not mounts:
        pytest.skip("no control groups are mounted")
    kind = min(mounts)  # v1's, if it is there
    outer = mounts[kind] / f"lynx_rt_test_{os.getpid()}"
    inner = outer / "inner"
    try:
        outer.mkdir()
        for folder in (outer, inner):
            folder.mkdir(exist_ok=True)
            for name, value in (v1 if kind == "cgroup" else v2 if folder is outer else {}).items():
                if not (folder / name).exists():
                    pytest.skip(f"groups have no {name}: the controller {controller} is not enabled")
                (folder / name).write_text(value)
        yield inner
    except OSError as error:
        pytest.skip(f"may not make control groups: {error}")
    finally:
        for folder in (inner, outer):
            if folder.exists():
                folder.rmdir()


def enter(folder: Path) -> Callable[[], object]:
    return lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))


def test_affinity() -> None:
    cpu = max(os.sched_getaffinity(0))
    found = threads(lambda: os.sched_setaffinity(0, {cpu}))
    assert found["num_threads"] == 1 and sum(kind["cpus"] for kind in found["kinds"]) == 1


@pytest.mark.parametrize("quota", [0.5, 1.5])
def test_quota(quota: float) -> None:
    microseconds = str(int(quota * 100_000))
    with group(
        "cpu",
        {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": microseconds},
        {"cpu.max": f"{microseconds} 100000"},
    ) as folder:
        found = threads(enter(folder))
    assert found["cpu_quota"] == quota and found["num_threads"] == 1


def test_cpuset() -> None:
    cpu = str(max(os.sched_getaffinity(0)))
    with group("cpuset", {"cpuset.cpus": cpu, "cpuset.mems": "0"}, {"cpuset.cpus": cpu}) as folder:
        found = threads(enter(folder))
    assert found["num_threads"] == 1 and sum(kind["cpus"] for kind in found["kinds"]) == 1
