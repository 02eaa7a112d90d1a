"""Engines whose experts are partly on the disk: the results of an engine that has all of them in memory, counters, and errors."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tiered import EXPERTS, GREEDY, LAYERS, PROMPTS, answers

from lynx_rt import CheckpointError, Engine, ModelNotFoundError, OutOfMemoryError, ValidationError
from lynx_rt.research.tier_simulation import save_static


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("memory", ["1%", 0.25, "70%"])
def test_same_results(nano_path, packed, expected, quantization, memory) -> None:
    options = {"expert_file": packed(quantization), "expert_memory": memory, "quantization": quantization}
    with Engine(nano_path, **options) as engine:
        assert answers(engine) == expected(quantization=quantization)
        assert answers(engine, PROMPTS[::-1]) == expected(quantization=quantization)[::-1]  # with residents of before


@pytest.mark.parametrize("policy", ["lfu:decay=0.5", "score:decay=0.9", "lru", "lfru", "random:seed=3", "none"])
@pytest.mark.parametrize("selection", ["topk", "lynx", "oea:k0=2"])
def test_policies_and_selections(nano_path, packed, expected, policy, selection) -> None:
    options = {"expert_selection": selection}
    with Engine(nano_path, expert_file=packed("none"), expert_memory=0.3, expert_policy=policy, **options) as engine:
        assert answers(engine) == expected(**options)


def test_prefix_cache_and_long_prompts(nano_path, packed) -> None:
    prompts = ["1 + 1 = 2. " * 20 + str(i) for i in range(3)]
    options = {"max_num_batched_tokens": 128, "enable_mixed_chunk": False}
    with (
        Engine(nano_path, **options) as plain,
        Engine(nano_path, expert_file=packed("none"), expert_memory=0.1, **options) as e,
    ):
        assert answers(e, prompts) == answers(plain, prompts)
        assert answers(e, prompts) == answers(plain, prompts)


@pytest.mark.parametrize("memory", [None, 1.0, "100GB"])
def test_all_in_memory(nano_path, packed, expected, memory) -> None:
    with Engine(nano_path, expert_file=packed("int8"), expert_memory=memory, quantization="int8") as engine:
        assert answers(engine) == expected(quantization="int8")
        assert engine.stats().tier is None
        assert engine.memory["weight"] >= packed("int8").stat().st_size


def test_counters(nano_path, packed) -> None:
    with Engine(nano_path, expert_file=packed("none"), expert_memory=0.25, max_num_seqs=4) as engine:
        answers(engine)
        tier, layers = engine.stats().tier, engine.stats().layers
        record = tier.slot_bytes
        assert tier.slots == EXPERTS * LAYERS // 4 and 0 < tier.resident <= tier.slots - 4
        assert tier.decode_hits + tier.decode_misses == sum(layer.active for layer in layers)
        assert 0 < tier.decode_misses < tier.misses and tier.bytes_read == tier.misses * record
        assert tier.wait_seconds > 0 and tier.read_seconds > 0 and tier.failed_reads == 0
        engine.reset_stats()
        tier = engine.stats().tier
        assert tier.misses == tier.hits == tier.bytes_read == 0 and tier.resident > 0


def test_most_used_experts_stay(nano_path, packed) -> None:
    """A single sequence uses few experts again and again, so that a cache of half of them is hit more often than chance (1/2)."""
    with Engine(nano_path, expert_file=packed("none"), expert_memory=0.55) as engine:
        answers(engine, PROMPTS[:1] * 3)
        engine.reset_stats()
        answers(engine, PROMPTS[:1] * 3)
        tier = engine.stats().tier
        assert tier.decode_hits > 0.8 * (tier.decode_hits + tier.decode_misses)


@pytest.mark.parametrize("selection", ["topk:resident=1", "cover:resident=1", "lynx:resident=0.5"])
@pytest.mark.parametrize("policy", ["lfu", "lru", "score"])
def test_selection_sees_residents(nano_path, packed, selection, policy) -> None:
    """A cache that is only counted, of as many experts as the store keeps, gives the same tokens and misses."""
    options = {"expert_selection": selection, "max_num_seqs": 4}
    with Engine(nano_path, expert_file=packed("none"), expert_memory=0.25) as engine:
        record = engine.stats().tier.slot_bytes
    counted = {"virtual_residents": 8, "virtual_residency": policy, "enable_mixed_chunk": False}
    stored = {"expert_file": packed("none"), "expert_memory": (LAYERS * 8 + 4) * record, "expert_policy": policy}
    results = []
    for more in (counted, stored, stored | {"expert_prefetch": "next_router"}):
        # With prefetch, as many experts more pass through.
        more |= {"expert_memory": more["expert_memory"] + 4 * record} if "expert_prefetch" in more else {}
        with Engine(nano_path, **options, **more) as engine:
            results.append((answers(engine), [layer.misses for layer in engine.stats().layers]))
            if engine.stats().tier is not None:
                assert sum(results[-1][1]) == engine.stats().tier.decode_misses
    assert results[0] == results[1] == results[2]
    with Engine(nano_path, max_num_seqs=4, **counted) as engine:  # own routing misses more
        answers(engine)
        assert sum(layer.misses for layer in engine.stats().layers) > 1.5 * sum(results[0][1])


def test_a_list_of_experts_stays(nano_path, packed, expected, tmp_path) -> None:
    """Experts of the list are read once, all others each time that they are used."""
    file = tmp_path / "static.safetensors"
    save_static(file, [[list(range(EXPERTS))]] * LAYERS)
    with Engine(nano_path, expert_file=packed("none"), expert_memory=0.25) as engine:
        record = engine.stats().tier.slot_bytes
    options = {"expert_memory": (LAYERS * 8 + 4) * record, "expert_policy": f"static:file={file}"}
    with Engine(nano_path, expert_file=packed("none"), **options) as engine:
        assert answers(engine) == expected()
        engine.reset_stats()
        answers(engine)
        used = [layer.active for layer in engine.stats().layers]
        tier = engine.stats().tier
        assert tier.resident == LAYERS * 8 and 0 < tier.decode_hits < sum(used)
        again = engine.stats().tier.decode_hits
        engine.reset_stats()
        answers(engine)
        assert engine.stats().tier.decode_hits == again  # nothing came or went
    save_static(file, [[list(range(EXPERTS))]] * (LAYERS - 1))
    with pytest.raises(ValidationError, match=r"experts: expected I32 \[8, any\], got I32 \[7, 32\]"):
        Engine(nano_path, expert_file=packed("none"), **options)
    save_static(file, [[[0, 0]]] * LAYERS)
    with pytest.raises(ValidationError, match="each once; got 0"):
        Engine(nano_path, expert_file=packed("none"), **options)


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"expert_memory": 0.5}, "expert_file", "lynx-rt pack"),
        ({"expert_memory": 2.0}, "expert_memory", '"200.0%"'),
        ({"expert_memory": "12 parsecs"}, "expert_memory", "parsecs"),
        ({"expert_file": True, "expert_memory": 1000}, "expert_memory", "two experts"),
        ({"expert_file": True, "expert_memory": 0}, "expert_memory", "two experts"),
        ({"expert_file": True, "expert_memory": 0.5, "expert_policy": "fifo"}, "expert_policy", "fifo"),
        ({"expert_file": True, "expert_memory": 0.5, "expert_policy": "ring"}, "expert_policy", "simulation"),
        ({"expert_file": True, "expert_memory": 0.5, "expert_policy": "static"}, "expert_policy", "static:file=PATH"),
        (
            {"expert_file": True, "quantization": "int4"},
            "expert_file",
            "expected experts of the quantization int4, found none",
        ),
        ({"expert_file": True, "expert_memory": 0.5, "virtual_residents": 4}, "virtual_residents", "expert_memory"),
        ({"expert_file": True, "load_format": "dummy"}, "expert_file", "dummy"),
    ],
)
def test_refused(nano_path, packed, options, field, words) -> None:
    if options.get("expert_file"):
        options = options | {"expert_file": packed("none")}
    with pytest.raises(Exception, match=words) as caught:
        Engine(nano_path, **options)
    assert caught.value.field == field and not isinstance(caught.value, OutOfMemoryError)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_file_is_made_in_the_cache(nano_path, packed, expected, tmp_path, quantization) -> None:
    """Once, with progress, beside the cache of an engine that has all experts in memory, which is another file."""
    steps: list[int] = []
    options = {"quantization": quantization, "quantization_cache": tmp_path / "cache"}
    if quantization != "none":
        with Engine(nano_path, **options) as engine:
            assert answers(engine) == expected(quantization=quantization)
    for memory in (0.25, 0.5, 1.0):
        steps.clear()
        with Engine(
            nano_path, expert_memory=memory, on_load_progress=lambda done, _: steps.append(done), **options
        ) as engine:
            assert answers(engine) == expected(quantization=quantization)
        assert (len(steps) >= EXPERTS * LAYERS) == (memory == 0.25)
    [file] = (tmp_path / "cache").glob("*.experts")
    assert file.read_bytes() == packed(quantization).read_bytes()
    assert len(list((tmp_path / "cache").iterdir())) == (1 if quantization == "none" else 3)


def test_other_files(nano_path, packed, tmp_path) -> None:
    with pytest.raises(ModelNotFoundError, match="nothing"):
        Engine(nano_path, expert_file=tmp_path / "nothing")
    other = tmp_path / "other"
    other.write_bytes(b"x" * 10000)
    with pytest.raises(CheckpointError, match="expected an expert file"):
        Engine(nano_path, expert_file=other, expert_memory=0.5)


def test_experts_of_another_checkpoint(nano_path, packed, tmp_path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in Path(nano_path).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValidationError, match="fingerprint") as caught:
        Engine(copy, expert_file=packed("none"), expert_memory=0.5)
    assert caught.value.field == "expert_file"


def test_file_is_cut_off_in_use(nano_path, packed, tmp_path) -> None:
    """Either a read ends at the file's end, which ends the requests of its step, or the next look at the file finds it."""
    path = tmp_path / "experts"
    path.write_bytes(packed("none").read_bytes())
    with Engine(nano_path, expert_file=path, expert_memory=0.25) as engine:
        answers(engine)
        with path.open("r+b") as file:
            file.truncate(1 << 16)
        with pytest.raises(CheckpointError, match="cut off"):
            for _ in range(3):
                for output in engine.generate(PROMPTS, GREEDY, use_tqdm=False):
                    assert output.outputs[0].finish_reason == "error"
                    assert "cut off" in output.outputs[0].error and str(path) in output.outputs[0].error
                time.sleep(0.3)  # the file is looked at four times a second


def test_mapped_file_is_written_to_in_use(nano_path, packed, tmp_path) -> None:
    path = tmp_path / "experts"
    path.write_bytes(packed("none").read_bytes())
    with Engine(nano_path, expert_file=path) as engine:
        answers(engine)
        with path.open("r+b") as file:
            file.write(b"!")
        time.sleep(0.3)
        with pytest.raises(CheckpointError, match="was written to"):
            engine.generate(PROMPTS, GREEDY, use_tqdm=False)
