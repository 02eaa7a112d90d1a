"""What `lynx-rt inspect --memory` expects of a model that is larger than the memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_rt import _C, ValidationError
from lynx_rt.cli.main import main
from lynx_rt.engine.tier_plan import hit_rate, plan

FACTS = {"num_experts": 8, "num_experts_per_tok": 2, "read_bytes_per_s": 1e6}
OPTION = {"expert_bytes": 80_000, "bytes_per_token": 40_000}


def division(slots: int, num_experts: int = 8) -> dict[str, Any]:
    return {
        "error": None,
        "kv": 1000,
        "max_model_len": 100,
        "experts": 10_000 * slots,
        "slots": slots,
        "num_experts": num_experts,
    }


def test_numbers() -> None:
    half = plan(FACTS, OPTION, division(4), 1e5)
    assert (half.kv_memory, half.max_model_len, half.expert_memory) == (1000, 100, 40_000)
    assert (half.resident_share, half.hit_rate) == (0.5, 0.84)
    assert half.read_per_token == pytest.approx(0.16 * 20_000)
    assert half.tokens_per_s == pytest.approx(1 / (0.04 + 0.032))


@given(st.integers(0, 8), st.integers(0, 8))
def test_more_memory_is_never_slower(a: int, b: int) -> None:
    less, more = plan(FACTS, OPTION, division(min(a, b)), 1e5), plan(FACTS, OPTION, division(max(a, b)), 1e5)
    assert 0 <= less.expert_memory <= more.expert_memory <= 80_000 and 0 <= less.hit_rate <= more.hit_rate <= 1
    assert less.tokens_per_s is not None and more.tokens_per_s is not None
    assert less.tokens_per_s <= more.tokens_per_s + 1e-9


def test_edges() -> None:
    nothing = plan(FACTS, OPTION, division(0) | {"error": "memory: too little"}, 1e5)
    assert (nothing.problem, nothing.expert_memory, nothing.tokens_per_s) == ("memory: too little", 0, None)
    all_of_it = plan(FACTS, OPTION, division(8), None)
    assert (all_of_it.expert_memory, all_of_it.read_per_token, all_of_it.tokens_per_s) == (80_000, 0, 25)
    assert plan(FACTS, OPTION, division(3), None).tokens_per_s is None  # the disk's rate is not known
    dense = FACTS | {"num_experts": 0, "num_experts_per_tok": 0}
    assert plan(dense, OPTION | {"expert_bytes": 0}, division(0, 0), None).tokens_per_s == 25
    assert [hit_rate(share) for share in (0, 0.1, 0.75, 1)] == [0, 0.3, 0.96, 1]


@pytest.mark.parametrize(("text", "size"), [("8GB", 8e9), ("1.5KiB", 1536), ("12", 12), ("0MB", 0)])
def test_sizes(text: str, size: float) -> None:
    assert _C.parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "8 parsecs", "-1", "nan", "1e30TB", "GB", "101%"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValidationError, match="memory"):
        _C.parse_memory(text)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--max-num-seqs", "4", "--max-model-len", "256"]
    assert main(["inspect", "--memory", "60MB", "--json", *sizes]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    plans = {o["quantization"]: o["plan"] for o in facts["options"]}
    assert 0 < plans["none"]["resident_share"] < plans["int8"]["resident_share"] <= plans["int4"]["resident_share"] <= 1
    assert facts["disk_bytes_per_s"] is None  # lynx-nano's file is too small to measure it
    assert main(["inspect", "--memory", "9MB"]) == 0
    out = capsys.readouterr().out
    assert "does not fit" in out and "pass memory=" in out
    assert main(["inspect", "--memory", "1TB"]) == 0  # of another machine
    assert " 100 % " in capsys.readouterr().out
    assert main(["inspect", "--memory", "much"]) != 0
    assert "memory" in capsys.readouterr().err
