"""Models with states of constant size beside pages: however requests are cut, batched, preempted or ended, their bits are those of one
pass, and nothing of a state is left to the next request."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import family_models_hybrid as hybrid
import numpy as np
import pytest
from driving import Job, Result, engine, params, record, run
from family_parity import write
from safetensors.numpy import load_file, save_file

from lynx_rt import _C, CheckpointError, OutOfMemoryError, UnsupportedModelError

ROW = hybrid.NEXT[0]
ROWS = [hybrid.NEXT[0], hybrid.MOE_TEXT[2], hybrid.DENSE_TEXT[3]]
LAYER = 4 * (4 * 8 * 12 + 3 * (2 * 2 * 8 + 4 * 12))  # bytes of a state of one layer
SLOT = 3 * (-(-LAYER // 64) * 64)  # of the three layers that have one
VOCAB = 97


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(ROW, tmp_path_factory.mktemp("hybrid"))


def sequence(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def jobs(count=4, tokens=30, **options):
    return [
        Job(sequence(20 + i, i), {"max_tokens": tokens, "logprobs": 1} | options, arrival=2 * i) for i in range(count)
    ]


def bits(results):
    return [r.bits for r in results]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_pieces(row, dtype, tmp_path):
    """Pieces of one token, of a page, and about a page are one pass, to the bit."""
    e, ids = engine(write(row, tmp_path), dtype=dtype), sequence(70)
    whole = e.forward(ids)
    for chunk in (1, 2, 3, 15, 16, 17, 64, 69):
        np.testing.assert_array_equal(e.forward(ids, chunk), whole)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_quantized(row, quantization, tmp_path):
    """Quantised on load: the bits of pieces are those of one pass, and logits resemble those of the weights as they were. Logits that have
    nothing to do with each other would be sqrt(2) of their size apart."""
    row = dataclasses.replace(row, keys=row.keys | {"hidden_size": 64, "moe_intermediate_size": 64})
    folder, ids = write(row, tmp_path), sequence(40)
    e = engine(folder, dtype="float32", quantization=quantization)
    whole = e.forward(ids)
    np.testing.assert_array_equal(e.forward(ids, 7), whole)
    plain = engine(folder, dtype="float32").forward(ids)
    most = {"int8": 0.5, "int4": 1.0}[quantization]
    assert 0 < np.linalg.norm(whole - plain) < most * np.linalg.norm(plain)


def test_batches(path):
    """Requests that come and go beside each other are alone, to the bit, log probabilities of the prompt included."""
    work = jobs(6, prompt_logprobs=1)
    together = run(engine(path, max_num_batched_tokens=16, num_threads=2), work, check=True)
    assert bits(together) == [run(engine(path), [job])[0].bits for job in work]


def test_preempted(path):
    """Requests that are preempted compute their states anew."""
    work = [dataclasses.replace(job, arrival=0) for job in jobs(4, 40)]
    expected = run(engine(path, block_size=4), work)
    # Half of it is for four states, the rest for 116 tokens; the requests come to 246.
    e = engine(path, block_size=4, max_num_seqs=4, kv_cache_memory_bytes=8 * SLOT)
    assert e.stats()["kv_blocks_total"] == 29
    assert bits(run(e, work, check=True)) == bits(expected)
    assert e.stats()["preemptions"] > 0


def test_aborted(path):
    """A slot that an aborted request leaves in the middle is a fresh one to the next request."""
    work = [dataclasses.replace(job, arrival=0) for job in jobs(3)]
    expected = bits(run(engine(path), work))
    e = engine(path, max_num_seqs=2, max_num_batched_tokens=8)
    ids = [e.add_request(job.prompt, params(**job.options)) for job in work]
    results = {i: Result() for i in ids}
    for _ in range(3):
        record(results, e.step())
    assert e.abort(ids[0])
    ids.append(e.add_request(work[0].prompt, params(**work[0].options)))
    results[ids[3]] = Result()
    while e.has_unfinished():
        record(results, e.step())
        e.check_integrity()
    assert [results[i].bits for i in ids[1:]] == [expected[1], expected[2], expected[0]]


def test_failed_step(path, tmp_path):
    """A request whose router scores are not finite ends; the others, whose states the step has changed in part, keep their bits."""
    bad, folder = 5, tmp_path / "model"
    shutil.copytree(path, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][bad] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    work = [Job([t for t in sequence(24, s) if t != bad], {"max_tokens": 20, "logprobs": 1}) for s in range(2)]
    expected = bits(run(engine(str(folder)), work))
    assert all(bad not in tokens for tokens, *_ in expected)
    mixed = run(engine(str(folder)), [*work, Job([3, bad, 4], {"max_tokens": 2}, arrival=5)], check=True)
    assert mixed[2].error and "finite" in mixed[2].error
    assert bits(mixed[:2]) == expected


def test_selection(path):
    """An exact request keeps its bits beside others that share experts, and recorded experts are those of the pass alone."""
    work = jobs(5, 20)
    alone = run(engine(path), [work[1]])[0]
    work[1].options["exact"] = True
    e = engine(path, expert_selection="lynx:alpha=2,theta=1.5", enable_return_routed_experts=True)
    assert run(e, work)[1].bits == alone.bits
    layers = e.stats()["layers"]
    assert len(layers) == 4 and sum(x["active"] for x in layers) < sum(x["union_before"] for x in layers)


def test_states_count_against_memory(path):
    """max_num_seqs is cut to the states that half of the memory has room for, and a warning says why."""
    work = jobs(5, 10)
    e = engine(path, max_num_seqs=16, kv_cache_memory_bytes=7 * SLOT, block_size=4)
    warnings = e.model_info()["warnings"]
    assert any("max_num_seqs: 3 instead of 16" in text and f"takes {SLOT} bytes" in text for text in warnings), warnings
    assert bits(run(e, work, check=True)) == bits(run(engine(path), work))
    with pytest.raises(OutOfMemoryError, match="the state of one sequence needs"):
        engine(path, kv_cache_memory_bytes=SLOT - 1)
    assert not engine(path, max_num_seqs=2).model_info()["warnings"]


def test_pages_of_attention_layers_alone(path):
    """K and V are kept of one layer in four."""
    info = _C.inspect(path)
    assert info["kv_bytes_per_token"] == 2 * 2 * 16 * 4
    assert info["state_bytes_per_sequence"] == 3 * LAYER
    assert "gated DeltaNet of 2 key heads of 8 and 4 value heads of 12 instead in 3 of 4 layers" in info["attention"]


WRONG = [
    ({"layer_types": ["linear_attention"] * 4}, UnsupportedModelError, "without full_attention"),
    ({"layer_types": ["linear_attention", "sliding_attention"] * 2}, UnsupportedModelError, "sliding_attention"),
    ({"layer_types": ["full_attention"]}, CheckpointError, "expected one for each of 4 layers, got 1"),
    ({"linear_num_value_heads": 3}, CheckpointError, "multiple of linear_num_key_heads 2, got 3"),
    ({"linear_conv_kernel_dim": 1}, CheckpointError, "linear_conv_kernel_dim"),
    ({"attn_output_gate": False}, UnsupportedModelError, "attn_output_gate"),
    ({"output_gate_type": "sigmoid"}, UnsupportedModelError, "output_gate_type"),
    ({"head_dim": None}, CheckpointError, "head_dim"),
]


@pytest.mark.parametrize("keys, error, text", WRONG, ids=lambda v: str(v)[:30])
def test_refused(path, tmp_path, keys, error, text):
    config = json.loads((Path(path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | keys))
    with pytest.raises(error, match=text):
        engine(str(tmp_path), load_format="dummy")


def test_dummy_weights(path, tmp_path):
    """States decay, so that no sequence is long enough for them to grow beyond what float32 holds."""
    shutil.copy(Path(path) / "config.json", tmp_path)
    assert np.isfinite(engine(str(tmp_path), load_format="dummy").forward(sequence(127))).all()
