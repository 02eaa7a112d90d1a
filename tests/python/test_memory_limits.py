"""An engine in a memory-limited control group plans within its limit. tests/cpp/test_cgroup.cc tests the forms of limits."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT = 600 << 20
# More requests than fit: what is planned then is bound by memory alone.
PLAN = """
import json, lynx_rt
from lynx_rt import _C
with lynx_rt.Engine(lynx_rt.shipped_model(), max_num_seqs=2048) as engine:
    print(json.dumps({"available": _C.build_info()["available_memory_bytes"], **engine.memory}))
"""


def plan(**popen: object) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, check=False, **popen)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A control group with a memory limit, below the group of this process. Skips where none may be made."""
    group = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, kind, options = line.split()[4], line.split(" - ")[1].split()[0], line.split()[-1].split(",")
        if kind == "cgroup" and "memory" in options:
            group, limit = Path(mount) / f"lynx_rt_test_{os.getpid()}", "memory.limit_in_bytes"
        elif kind == "cgroup2" and group is None:
            group, limit = Path(mount) / f"lynx_rt_test_{os.getpid()}" / "inner", "memory.max"
    if group is None:
        pytest.skip("no control groups are mounted")
    outer = group.parent if group.name == "inner" else group
    try:
        group.mkdir(parents=True)
        (outer / limit).write_text(str(LIMIT))
        yield group
    except OSError as error:
        pytest.skip(f"may not make control groups: {error}")
    finally:
        for folder in {group: None, outer: None}:
            if folder.exists():
                folder.rmdir()


def test_limit_of_the_control_group_bounds_the_plan(limited_group: Path) -> None:
    unlimited = plan()
    assert unlimited["kv"] > LIMIT
    planned = plan(preexec_fn=lambda: (limited_group / "cgroup.procs").write_text(str(os.getpid())))
    assert 0 < planned["available"] < LIMIT
    assert 0 < planned["kv"] <= LIMIT // 2


def test_limit_of_the_address_space_bounds_the_plan() -> None:
    limit = 3 << 30
    planned = plan(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert 0 < planned["available"] < limit
    assert 0 < planned["kv"] <= limit // 2
