"""What an engine with experts on the disk counts, against other accounts: a simulation, the system's counters, and the memory taken."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiered import EXPERTS, LAYERS, answers

from lynx_rt import Engine, _C_testing

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's counters")


@pytest.mark.parametrize("policy", ["lfu", "lfu:decay=0.5", "lru", "random:seed=2", "none"])
@pytest.mark.parametrize("selection", ["topk", "lynx"])
def test_misses_are_those_of_a_simulation(nano_path, packed, policy, selection) -> None:
    """Experts of the recorded steps, given to the bookkeeping alone, miss as often as in the store."""
    options = {"expert_selection": selection, "record_router_logits": True, "max_num_seqs": 4}
    with Engine(nano_path, expert_file=packed("none"), expert_memory=0.3, expert_policy=policy, **options) as engine:
        answers(engine)
        logits, tier = engine._core.take_router_logits(), engine.stats().tier
        layers = engine.stats().layers
    steps, routed, scores = (np.asarray(logits[name]) for name in ("step", "routed_experts", "scores"))
    used: list[Any] = [[] for _ in range(LAYERS)]
    wanted: list[Any] = [[] for _ in range(LAYERS)]
    for step in np.unique(steps):
        for layer in range(LAYERS):
            ids, own = (
                routed[steps == step, layer],
                scores[steps == step, layer].argsort(axis=1)[:, -ids_per_row(routed) :],
            )
            used[layer].append([int(e) for e in np.unique(ids[ids >= 0])])
            wanted[layer].append([int(e) for e in np.unique(own)])
    spare = min(ids_per_row(routed), tier.slots // 4)
    quota = _C_testing.uniform_quota(tier.slots - spare, LAYERS, EXPERTS)
    counts = _C_testing.simulate_residency(policy, quota, EXPERTS, used, [], wanted)["counts"]
    assert [reads for _, _, reads, _, _ in counts] == [layer.misses for layer in layers]
    assert sum(reads for _, _, reads, _, _ in counts) == tier.decode_misses > 0
    assert sum(hits for _, hits, _, _, _ in counts) == tier.decode_hits


def ids_per_row(routed: Any) -> int:
    return int(routed.shape[2])


def cold_copy(path: Path, to: Path) -> None:
    """Copies a file and leaves none of it in the page cache. Skips where the file system reads through the cache."""
    to.write_bytes(path.read_bytes())
    file = os.open(to, os.O_RDWR)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    try:
        file = os.open(to, os.O_RDONLY | os.O_DIRECT)
        os.preadv(file, [mmap.mmap(-1, 4096)], 0)
        os.close(file)
    except OSError as error:
        pytest.skip(f"the file system of {to} has no direct reads: {error}")
    if cached_pages(to):
        pytest.skip(f"the file system of {to} keeps pages that it is told to drop")


def cached_pages(path: Path) -> int:
    """Returns how many pages of a file are in the page cache."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        begin = ctypes.c_char.from_buffer(mapped)
        address, length = ctypes.c_void_p(ctypes.addressof(begin)), ctypes.c_size_t(len(mapped))
        assert ctypes.CDLL(None).mincore(address, length, pages) == 0
        del begin
        return sum(page & 1 for page in pages)


def bytes_from_disk() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


@linux
def test_reads_are_those_of_the_system(nano_path, packed, tmp_path) -> None:
    """Experts are read from the disk as often as counted, and leave nothing in the page cache."""
    experts = tmp_path / "experts"
    cold_copy(packed("none"), experts)
    with Engine(nano_path, expert_file=experts, expert_memory=0.25) as engine:
        answers(engine)
        before, tier = bytes_from_disk(), engine.stats().tier
        answers(engine)
        read, now = bytes_from_disk() - before, engine.stats().tier
        misses = now.misses - tier.misses
        assert now.bytes_read - tier.bytes_read == misses * tier.slot_bytes
        assert cached_pages(experts) == 0
    if read == 0:
        pytest.skip("the system does not count this file system's reads")
    assert read == pytest.approx(misses * tier.slot_bytes, rel=0.01)


# Prints the memory that an engine takes, beside that of the interpreter.
FOOTPRINT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tiered import answers
from lynx_rt import Engine

def anonymous():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])

model, experts, memory, _, policy = sys.argv[1:]
with Engine(model) as engine:  # what the first engine of a process leaves behind
    answers(engine)
before = anonymous()
with Engine(model, expert_file=experts, memory=memory, max_num_seqs=8, max_model_len=1024, expert_policy=policy) as engine:
    long = ["1 + 2 = 3. " * 60 + str(i) for i in range(8)]
    for _ in range(3):
        answers(engine, long)
        answers(engine)
    tier = engine.stats().tier
    print(anonymous() - before, tier.slots * tier.slot_bytes + tier.low_bytes)
"""


@linux
@pytest.mark.parametrize("memory", [70_000_000, 90_000_000])
@pytest.mark.parametrize("policy", ["lru", "lru:miss=low"])
def test_memory_is_what_was_planned(nano_path, packed, memory, policy) -> None:
    command = [sys.executable, "-c", FOOTPRINT, nano_path, packed("none"), str(memory), Path(__file__).parent, policy]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    taken, experts = map(int, output.split())
    assert 0.98 * experts < taken < 1.02 * memory
