"""Copies of all experts in low precision (expert_policy with miss=low, and hi_lo): what is computed from them, which experts are in full
precision, the memory that they take, and what is refused. tests/cpp/test_expert_store.cc checks the store alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiered import EXPERTS, LAYERS, PROMPTS, answers

from lynx_rt import _C, Engine, OutOfMemoryError, SamplingParams, ValidationError, _C_testing

# Prints the answers under several policies, and how many experts were late.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
from tiered import answers
from lynx_rt import Engine

for policy in sys.argv[4:]:
    with Engine(sys.argv[1], expert_file=sys.argv[2], expert_memory=0.55, expert_policy=policy) as engine:
        for _ in range(2):
            for i, (tokens, logprobs) in enumerate(answers(engine)):
                for j, entry in enumerate(logprobs):
                    print(policy, "prompt", i, "token", j, tokens[j], entry)
        tier = engine.stats().tier
        print(policy, tier.hits, tier.misses, tier.resident)
        print(tier.late, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_results_do_not_depend_on_the_speed_of_reads(nano_path, packed, tmp_path) -> None:
    here, library = Path(__file__).parent, tmp_path / "slow_reads.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, here / "hang_reads.c"], check=True)
    experts = os.path.realpath(packed("none"))
    policies = ["lfu:miss=low", "lru:miss=low", "none:miss=low", "hi_lo:period=3,inflight=8"]
    thresholds = ["lfu:miss=low,full=0.3,skip=0.8", "hi_lo:period=3,inflight=8,full=0.5"]
    command = [sys.executable, "-c", SCRIPT, nano_path, experts, str(here), *policies, *thresholds]
    delays = {"LD_PRELOAD": str(library), "HANG_FILE": experts, "MOST_DELAY_US": "3000"}
    runs = [
        subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for env in ({}, delays)
    ]
    (fast, _), (slow, late) = (run.communicate(timeout=300) for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert fast.splitlines() == slow.splitlines()  # so that a failure names the policy and the token
    assert int(late.split()[1]) > 0 and int(late.split()[2]) == 0  # lru waits for a slow disk; none reads nothing


def distance(a: list[Any], b: list[Any]) -> float:
    """Returns the mean distance between the log probabilities of the first tokens of answers."""
    found = []
    for (_, left), (_, right) in zip(a, b, strict=True):
        x, y = ({token: entry.logprob for token, entry in first[0].items()} for first in (left, right))
        found += [abs(x[token] - y[token]) for token in x.keys() & y.keys()]
    return float(np.mean(found))


def test_between_all_low_and_all_full(nano_path, packed, expected, tmp_path) -> None:
    """More experts in full precision bring results closer to those of the model; the list says which these are."""
    from lynx_rt.research.tier_simulation import save_static

    lists = tmp_path / "static.safetensors"
    save_static(lists, [[list(range(EXPERTS))]] * LAYERS)
    found = []
    for policy, memory in (("none:miss=low", 0.5), (f"static:file={lists},miss=low", "125%")):
        with Engine(nano_path, expert_file=packed("none"), expert_memory=1.0) as engine:
            all_bytes = packed("none").stat().st_size
            assert engine.stats().tier is None
        amount = memory if isinstance(memory, float) else all_bytes - 100_000
        with Engine(nano_path, expert_file=packed("none"), expert_memory=amount, expert_policy=policy) as engine:
            got = answers(engine)
            tier = engine.stats().tier
            assert tier.low_bytes + tier.slots * tier.slot_bytes <= amount * (all_bytes if amount < 1 else 1)
            found.append((distance(got, expected()), tier.resident, tier.hits))
    (low, none, no_hits), (mixed, some, hits) = found
    assert none == no_hits == 0 and some > EXPERTS * LAYERS // 2 and hits > 0
    assert 0 < mixed < low < 0.5


def test_thresholds(nano_path, packed, expected) -> None:
    """With full=1 every expert is read, and results are the model's; fewer reads and dropped choices lead away from them."""
    read, distances = [], []
    for policy in ("full=1", "full=0.6", "full=0", "", "skip=0.5", "skip=0"):
        text = f"none:miss=low,{policy}".rstrip(",")
        with Engine(nano_path, expert_file=packed("none"), expert_memory=0.5, expert_policy=text) as engine:
            got = answers(engine)
            tier = engine.stats().tier
            assert tier.hits == 0 and tier.bytes_read % tier.slot_bytes == 0
            read.append(tier.bytes_read // tier.slot_bytes)
            distances.append(distance(got, expected()))
            if policy == "full=1":
                assert got == expected() and read[0] == tier.misses
    assert read[0] > read[1] > read[2] > 0 == read[3] == read[4] == read[5]
    assert distances[0] == 0 < distances[3] < distances[4] < distances[5]
    assert max(distances[1:3]) < distances[4]


@pytest.mark.parametrize("policy", ["lfu:miss=low", "lru:miss=low", "hi_lo:period=5,inflight=3,hysteresis=1.1"])
def test_residents_are_those_of_a_simulation(nano_path, packed, policy) -> None:
    options = {"record_router_logits": True, "max_num_seqs": 4, "expert_memory": 0.6, "expert_policy": policy}
    with Engine(nano_path, expert_file=packed("none"), **options) as engine:
        for _ in range(3):
            answers(engine)
        logits, tier, layers = engine._core.take_router_logits(), engine.stats().tier, engine.stats().layers
    steps, routed = np.asarray(logits["step"]), np.asarray(logits["routed_experts"])
    used = [[np.unique(routed[steps == s, m]).tolist() for s in np.unique(steps)] for m in range(LAYERS)]
    quota = _C_testing.uniform_quota(tier.slots - 1, LAYERS, EXPERTS)
    counts = _C_testing.simulate_residency(policy, quota, EXPERTS, used, [], used)["counts"]
    assert [n - hits for n, hits, *_ in counts] == [layer.misses for layer in layers]
    assert sum(hits for _, hits, *_ in counts) == tier.decode_hits > 0
    inserted = sum(count[3] for count in counts)
    # A read may still be under way, or be dropped because its expert left before it had arrived.
    assert 0 < tier.bytes_read <= inserted * tier.slot_bytes


def test_int8_experts_and_memory(nano_path, packed) -> None:
    """Experts of the file may be quantised, and one number may be given for all memory."""
    options = {"max_num_seqs": 4, "max_model_len": 256, "quantization": "int8", "expert_policy": "lfu:miss=low"}
    plain = _C.foretell_memory(nano_path, 60_000_000, 4, 256)
    said = _C.foretell_memory(nano_path, 60_000_000, 4, 256, "lfu:miss=low")
    for before, option in zip(plain, said, strict=True):
        assert before["low"] == 0 and option["low"] > 0
    option = next(o for o in said if o["quantization"] == "int8")
    memory = option["weights"] + option["steps"] + option["kv"] + option["low"] + 60 * (option["experts"] // EXPERTS)
    option = next(
        o for o in _C.foretell_memory(nano_path, memory, 4, 256, "lfu:miss=low") if o["quantization"] == "int8"
    )
    if option["error"] is not None:
        pytest.skip(option["error"])
    with Engine(nano_path, memory=memory, expert_file=packed("int8"), **options) as engine:
        first, tier = answers(engine), engine.stats().tier
        if tier is not None:
            assert (tier.slots, tier.low_bytes) == (option["slots"], option["low"])
        assert len(first) == len(PROMPTS)


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"expert_memory": 0.1, "expert_policy": "lfu:miss=low"}, "expert_memory", "copies of all in low precision"),
        (
            {"expert_memory": 0.6, "expert_policy": "hi_lo", "expert_prefetch": "next_router"},
            "expert_prefetch",
            "read nothing for themselves",
        ),
        ({"expert_memory": 0.6, "expert_policy": "hi_lo:miss=wait"}, "expert_policy", "miss: expected low"),
        ({"expert_memory": 0.6, "expert_policy": "hi_lo:period=0"}, "expert_policy", "period: expected a whole number"),
        (
            {"expert_memory": 0.6, "expert_policy": "hi_lo:hysteresis=0.9"},
            "expert_policy",
            "hysteresis: expected a number from 1",
        ),
        ({"expert_memory": 0.6, "expert_policy": "lfu:miss=skip"}, "expert_policy", "miss: expected wait or low"),
        ({"expert_memory": 0.6, "expert_policy": "lfu:full=0.6"}, "expert_policy", "full and skip with miss=low alone"),
        (
            {"expert_memory": 0.6, "expert_policy": "lfu:miss=low,full=1.5"},
            "expert_policy",
            "full: expected a number from 0 to 1",
        ),
        (
            {"expert_memory": 0.6, "expert_policy": "lru:miss=low,full=0.6,skip=0.5"},
            "expert_policy",
            "at least full = 0.6",
        ),
        ({"expert_memory": 0.6, "expert_policy": "ring:miss=low"}, "expert_policy", "expected ring alone"),
        ({"expert_memory": 0.6, "expert_policy": "lfu:period=3"}, "expert_policy", "expected lfu with decay=VALUE"),
        (
            {"expert_memory": 0.6, "expert_policy": "lfu:miss=low", "quantization": "int4"},
            "expert_policy",
            "int4 takes",
        ),
    ],
)
def test_refused(nano_path, packed, options, field, words) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        Engine(nano_path, expert_file=packed(options.get("quantization", "none")), **options)
    assert caught.value.field == field and not isinstance(caught.value, OutOfMemoryError)


def test_a_cache_without_weights_has_no_copies(nano_path) -> None:
    with pytest.raises(ValidationError, match="copies in low precision") as caught:
        Engine(nano_path, virtual_residents=8, virtual_residency="lfu:miss=low")
    assert caught.value.field == "virtual_residency"


def test_exact_requests_are_refused(nano_path, packed) -> None:
    exact = SamplingParams(max_tokens=2, expert_selection="exact")
    options = {"expert_file": packed("none"), "expert_memory": 0.6}
    with Engine(nano_path, expert_policy="lfu:miss=low", **options) as engine:
        with pytest.raises(ValidationError, match="in low precision") as caught:
            engine.generate("1 + 1 = ", exact, use_tqdm=False)
        assert caught.value.field == "exact"
        engine.generate("1 + 1 = ", SamplingParams(max_tokens=2), use_tqdm=False)
    with Engine(nano_path, expert_policy="lfu:miss=wait", **options) as engine:
        engine.generate("1 + 1 = ", exact, use_tqdm=False)
