"""The option `memory`: how it is divided, what `lynx-rt inspect --memory` foretells of that, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tiered import EXPERTS, LAYERS, answers

from lynx_rt import _C, Engine, OutOfMemoryError, UnsupportedModelError, ValidationError

SIZES = {"max_num_seqs": 4, "max_model_len": 256}


def foretold(model: str, memory: int, quantization: str = "none", **sizes: Any) -> dict[str, Any]:
    found = _C.foretell_memory(model, memory, sizes.get("max_num_seqs", 128), sizes.get("max_model_len", 0))
    return next(option for option in found if option["quantization"] == quantization)


@pytest.fixture(scope="module")
def least(nano_path: str) -> int:
    """Bytes with which the engine works, with two experts in memory."""
    error = foretold(nano_path, 1, **SIZES)["error"]
    return int(re.findall(r"pass memory=(\d+) or more", error)[0])


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("sizes", [{}, {"max_num_seqs": 4}, SIZES], ids=["default", "few", "short"])
def test_the_engine_does_what_inspect_foretells(nano_path, packed, quantization, sizes) -> None:
    shares = set()
    for memory in (41_000_000, 45_000_000, 60_000_000, 75_000_000, 10**9):
        said = foretold(nano_path, memory, quantization, **sizes)
        options = {"memory": memory, "quantization": quantization, "expert_file": packed(quantization), **sizes}
        if said["error"] is not None:
            with pytest.raises(OutOfMemoryError) as caught:
                Engine(nano_path, **options)
            assert str(caught.value) == said["error"] and caught.value.field == "memory"
            continue
        with Engine(nano_path, **options) as engine:
            tier = engine.stats().tier
            assert (tier.slots if tier else EXPERTS * LAYERS) == said["slots"]
            assert (engine.memory["kv"], engine.max_model_len) == (said["kv"], said["max_model_len"])
            assert engine.memory["weight"] >= said["weights"] and engine.memory["workspace"] <= said["steps"]
            assert said["weights"] + said["steps"] + said["kv"] + said["experts"] <= memory
            shares.add(said["slots"])
    assert len(shares) > 1 and EXPERTS * LAYERS in shares


def test_same_results(nano_path, packed, expected, least) -> None:
    for memory in (least, least + 10_000_000, least + 500_000_000):
        with Engine(nano_path, memory=memory, expert_file=packed("none"), **SIZES) as engine:
            assert answers(engine) == expected(**SIZES)
            tier = engine.stats().tier
            if memory == least:
                assert tier.slots == 2
                assert engine.memory["kv"] == SIZES["max_model_len"] * engine.model_config["kv_bytes_per_token"]
            assert (tier is None) == (memory > least + 100_000_000)


def test_below_the_least(nano_path, packed, least) -> None:
    with pytest.raises(OutOfMemoryError, match=f"pass memory={least} or more") as caught:
        Engine(nano_path, memory=least - 1, expert_file=packed("none"), **SIZES)
    assert "max_model_len" in str(caught.value) and caught.value.field == "memory"


def test_other_options_keep_their_meaning(nano_path, packed, least) -> None:
    memory, page = least + 20_000_000, 16 * foretold(nano_path, least, **SIZES)["kv"] // 256
    with Engine(nano_path, memory=memory, expert_file=packed("none"), **SIZES) as engine:
        slots, kv, slot = engine.stats().tier.slots, engine.memory["kv"], engine.stats().tier.slot_bytes
    options = {"memory": memory, "expert_file": packed("none"), **SIZES}
    with Engine(nano_path, kv_cache_memory_bytes=20 * page, **options) as engine:
        assert engine.memory["kv"] == 20 * page < kv and engine.stats().tier.slots > slots
    with Engine(nano_path, expert_memory=7 * slot, **options) as engine:
        assert engine.stats().tier.slots == 7 and engine.memory["kv"] == kv  # all that max_num_seqs wants
    with Engine(nano_path, expert_memory="auto", **options) as engine:  # means what is left
        assert engine.stats().tier.slots == slots
    for contradiction in ({"kv_cache_memory_bytes": memory}, {"expert_memory": 1.0}):
        with pytest.raises(OutOfMemoryError, match="pass memory=") as caught:
            Engine(nano_path, **options, **contradiction)
        assert caught.value.field == "memory"


def test_half_of_the_rest_is_the_most_for_the_cache(nano_path, packed, least) -> None:
    with Engine(nano_path, memory=least + 20_000_000, expert_file=packed("none"), max_num_seqs=128) as engine:
        tier, kv = engine.stats().tier, engine.memory["kv"]
        assert (
            0.4 * kv < tier.slots * tier.slot_bytes < 1.1 * kv
        )  # the cache of more requests than `least` has room for
        assert engine.max_model_len == engine.model_config["max_position_embeddings"]


def test_without_an_expert_file(nano_path, expected, least) -> None:
    """All experts are always in memory: either all of the model fits, or the error says how it would."""
    with pytest.raises(OutOfMemoryError, match="lynx-rt pack"):
        Engine(nano_path, memory=least, **SIZES)
    with Engine(nano_path, memory="300MB", **SIZES) as engine:
        assert answers(engine) == expected(**SIZES) and engine.stats().tier is None


def test_file_is_made_in_the_cache(nano_path, expected, least, tmp_path) -> None:
    for _ in range(2):
        with Engine(nano_path, memory=least + 10_000_000, quantization_cache=tmp_path, **SIZES) as engine:
            assert engine.stats().tier is not None and answers(engine) == expected(**SIZES)
    assert [file.suffix for file in tmp_path.iterdir()] == [".experts"]


def test_shares(nano_path) -> None:
    free = _C.parse_memory("100%")
    assert _C.parse_memory("auto") == pytest.approx(0.8 * free, rel=0.1)
    assert _C.parse_memory("1.5KiB") == 1536 and _C.parse_memory("8GB") == 8e9
    with Engine(nano_path, memory="auto", **SIZES) as engine:
        assert engine.memory["kv"] == 4 * 256 * engine.model_config["kv_bytes_per_token"]
    with Engine(nano_path, memory=0.5, **SIZES) as engine:
        assert engine.memory["kv"] == 4 * 256 * engine.model_config["kv_bytes_per_token"]


@pytest.mark.parametrize(
    ("memory", "error", "words"),
    [
        ("8 parsecs", ValidationError, "parsecs"),
        ("", None, ""),
        (-1, ValidationError, "expected"),
        ("101%", ValidationError, "expected"),
        ("100TB", OutOfMemoryError, "are free"),
        (0, OutOfMemoryError, "pass memory="),
    ],
)
def test_refused(nano_path, memory, error, words) -> None:
    if error is None:
        Engine(nano_path, memory=memory).close()
        return
    with pytest.raises(error, match=words) as caught:
        Engine(nano_path, memory=memory)
    assert caught.value.field == "memory" and not isinstance(caught.value, UnsupportedModelError)


def test_length_beyond_the_model(nano_path) -> None:
    with pytest.raises(ValidationError, match="max_position_embeddings") as caught:
        Engine(nano_path, memory="500MB", max_model_len=10**9)
    assert caught.value.field == "max_model_len"
