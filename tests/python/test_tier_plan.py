"""What `lynx-rt inspect --memory` expects of a model that is larger than the memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_rt import ValidationError
from lynx_rt.cli.main import main
from lynx_rt.engine.tier_plan import hit_rate, parse_size, plan

FACTS = {
    "kv_bytes_per_token": 10,
    "max_position_embeddings": 100,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "read_bytes_per_s": 1e6,
}
OPTION = {"weight_bytes": 100_000, "expert_bytes": 80_000, "bytes_per_token": 40_000}


def test_numbers() -> None:
    half = plan(FACTS, OPTION, 20_000 + 1000 + 40_000, 1e5)  # the rest, K and V of 100 tokens, and half of the experts
    assert (half.expert_memory, half.resident_share, half.hit_rate) == (40_000, 0.5, 0.84)
    assert half.read_per_token == pytest.approx(0.16 * 20_000)
    assert half.tokens_per_s == pytest.approx(1 / (0.04 + 0.032))


@given(st.integers(0, 200_000), st.integers(0, 200_000))
def test_more_memory_is_never_slower(a: int, b: int) -> None:
    less, more = plan(FACTS, OPTION, min(a, b), 1e5), plan(FACTS, OPTION, max(a, b), 1e5)
    assert 0 <= less.expert_memory <= more.expert_memory <= 80_000 and 0 <= less.hit_rate <= more.hit_rate <= 1
    assert less.tokens_per_s is None or less.tokens_per_s <= more.tokens_per_s + 1e-9


def test_edges() -> None:
    assert plan(FACTS, OPTION, 21_000, 1e5).tokens_per_s is None  # nothing is left for experts
    all_of_it = plan(FACTS, OPTION, 10**9, None)
    assert (all_of_it.expert_memory, all_of_it.read_per_token, all_of_it.tokens_per_s) == (80_000, 0, 25)
    assert plan(FACTS, OPTION, 50_000, None).tokens_per_s is None  # the disk's rate is not known
    dense = FACTS | {"num_experts": 0, "num_experts_per_tok": 0}
    assert plan(dense, OPTION | {"expert_bytes": 0}, 10**9, None).tokens_per_s == 25
    assert [hit_rate(share) for share in (0, 0.1, 0.75, 1)] == [0, 0.3, 0.96, 1]


@pytest.mark.parametrize(("text", "size"), [("8GB", 8e9), ("1.5KiB", 1536), ("12", 12), ("0MB", 0)])
def test_sizes(text: str, size: float) -> None:
    assert parse_size(text, "memory") == size


@pytest.mark.parametrize("text", ["", "8 parsecs", "-1", "nan", "1e30TB", "GB", "25%"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValidationError, match="memory"):
        parse_size(text, "memory")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--memory", "40MB", "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    plans = {o["quantization"]: o["plan"] for o in facts["options"]}
    assert 0 < plans["none"]["resident_share"] < plans["int8"]["resident_share"] <= plans["int4"]["resident_share"] <= 1
    assert facts["disk_bytes_per_s"] is None  # lynx-nano's file is too small to measure it
    assert main(["inspect", "--memory", "9MB"]) == 0
    assert "the rest alone does not fit" in capsys.readouterr().out
    assert main(["inspect", "--memory", "much"]) != 0
    assert "memory" in capsys.readouterr().err
