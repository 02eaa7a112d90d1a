"""LFM2, Nemotron-H and Kimi Linear: the bits of one pass however requests are cut, batched, preempted, quantised or found in the prefix
cache; what `inspect` says of them, and what is refused. test_hybrid_states.py and test_state_snapshots.py test the states themselves."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import family_models_states as states
import numpy as np
import pytest
from driving import Job, engine, run
from family_parity import write, written_once

from lynx_rt import _C, CheckpointError, UnsupportedModelError

ROWS = [states.LFM2[0], states.NEMOTRON[3], states.KIMI[0]]
NAMES = {row.model_type: row for row in ROWS}
VOCAB = 97


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return written_once(tmp_path_factory)


@pytest.fixture(params=ROWS, ids=lambda row: row.id)
def path(request, written):
    return written(request.param)


def sequence(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def bits(results):
    return [r.bits for r in results]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces(path, dtype):
    e, ids = engine(path, dtype=dtype), sequence(70)
    whole = e.forward(ids)
    for chunk in (1, 2, 3, 15, 16, 17, 64, 69):
        np.testing.assert_array_equal(e.forward(ids, chunk), whole)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_quantized(row, quantization, tmp_path):
    """As in test_hybrid_states.py."""
    row = dataclasses.replace(row, keys=row.keys | {"hidden_size": 64, "moe_intermediate_size": 64})
    folder, ids = write(row, tmp_path), sequence(40)
    e = engine(folder, dtype="float32", quantization=quantization)
    whole = e.forward(ids)
    np.testing.assert_array_equal(e.forward(ids, 7), whole)
    plain = engine(folder, dtype="float32").forward(ids)
    assert 0 < np.linalg.norm(whole - plain) < {"int8": 0.5, "int4": 1.0}[quantization] * np.linalg.norm(plain)


def test_batches_and_preemption(path):
    work = [Job(sequence(20 + i, i), {"max_tokens": 30, "logprobs": 1, "prompt_logprobs": 1}) for i in range(4)]
    alone = [run(engine(path, block_size=4), [job])[0].bits for job in work]
    apart = [dataclasses.replace(job, arrival=2 * i) for i, job in enumerate(work)]
    together = engine(path, block_size=4, max_num_batched_tokens=16, num_threads=2)
    assert bits(run(together, apart, check=True)) == alone
    # Half of the memory is for states, as much as four take; the rest is for fewer than the 206 tokens of all requests.
    info = _C.inspect(path)
    slots = 4 * (info["state_bytes_per_sequence"] + 64 * 8)
    memory = max(2 * slots, slots + 120 * info["kv_bytes_per_token"])
    tight = engine(path, block_size=4, max_num_seqs=4, kv_cache_memory_bytes=memory)
    results = run(tight, work, check=True)
    assert bits(results) == alone
    if tight.stats()["kv_blocks_total"] < 40:
        assert tight.stats()["preemptions"] > 0


def test_prefix_cache(path):
    """Requests that begin alike start where a snapshot is, and give the bits of those that compute all."""
    prefix = sequence(40, 7)
    work = [Job(prefix + sequence(5 + i, i), {"max_tokens": 12, "logprobs": 1}, arrival=20 * i) for i in range(4)]
    found = run(engine(path, block_size=8, enable_prefix_caching=True), work, check=True)
    assert bits(found) == bits(run(engine(path, block_size=8, enable_prefix_caching=False), work))
    assert found[-1].num_cached_tokens >= 32


def test_exact_beside_selection(path):
    work = [Job(sequence(16 + i, i), {"max_tokens": 16, "logprobs": 1}) for i in range(5)]
    alone = run(engine(path), [work[1]])[0]
    work[1].options["exact"] = True
    e = engine(path, expert_selection="lynx:alpha=2,theta=1.5", enable_return_routed_experts=True)
    assert run(e, work)[1].bits == alone.bits
    layers = e.stats()["layers"]
    assert len(layers) == e.model_info()["num_moe_layers"]


def test_dummy_weights(path, tmp_path):
    shutil.copy(Path(path) / "config.json", tmp_path)
    assert np.isfinite(engine(str(tmp_path), load_format="dummy").forward(sequence(20))).all()


SAID = {
    "lfm2_moe": ("a convolution of 3 tokens instead in 3 of 4 layers", 3 * 4 * 2 * 48, 2 * 2 * 12 * 4),
    "nemotron_h": ("Mamba2 of 3 heads of 9 with states of 20 instead in 3 of 7 layers, an MLP or experts alone instead in 3 of 7 layers",
                   3 * 4 * (3 * 20 * 9 + 2 * (27 + 2 * 3 * 20)), 2 * 2 * 16 * 4),
    "kimi_linear": ("Kimi delta attention of 3 heads of 8 instead in 2 of 4 layers", 2 * 4 * (3 * 64 + 3 * 72), 2 * (16 + 4) * 4),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_inspect(name, written):
    info = _C.inspect(written(NAMES[name]))
    text, of_states, of_token = SAID[name]
    assert text in info["attention"]
    assert (info["state_bytes_per_sequence"], info["kv_bytes_per_token"]) == (of_states, of_token)
    assert info["keys_not_understood"] == []


WRONG = [
    ("lfm2_moe", {"layer_types": ["conv"] * 4}, UnsupportedModelError, "without full_attention"),
    ("lfm2_moe", {"layer_types": ["conv", "linear_attention"] * 2}, UnsupportedModelError, "linear_attention"),
    ("lfm2_moe", {"layer_types": ["conv"]}, CheckpointError, "expected one for each of 4 layers, got 1"),
    ("lfm2_moe", {"conv_L_cache": 1}, CheckpointError, "conv_L_cache"),
    ("nemotron_h", {"hybrid_override_pattern": "MMM"}, UnsupportedModelError, "without full_attention"),
    ("nemotron_h", {"hybrid_override_pattern": "M*X"}, UnsupportedModelError, '"X"'),
    ("nemotron_h", {"hybrid_override_pattern": ""}, CheckpointError, "layers, got 0"),
    ("nemotron_h", {"hybrid_override_pattern": None}, CheckpointError, "layers_block_type"),
    ("nemotron_h", {"moe_latent_size": 16}, UnsupportedModelError, "moe_latent_size 16"),
    ("nemotron_h", {"mlp_hidden_act": "silu"}, UnsupportedModelError, "mlp_hidden_act"),
    ("nemotron_h", {"mamba_hidden_act": "gelu"}, UnsupportedModelError, "mamba_hidden_act"),
    ("nemotron_h", {"attention_bias": True}, UnsupportedModelError, "attention_bias"),
    ("nemotron_h", {"sliding_window": 8}, UnsupportedModelError, "sliding_window"),
    ("nemotron_h", {"n_groups": 2}, CheckpointError, "divisor of mamba_num_heads 3, got 2"),
    ("nemotron_h", {"time_step_limit": [0.5, 0.1]}, CheckpointError, "time_step_limit"),
    ("nemotron_h", {"time_step_limit": ["x", 1]}, CheckpointError, "time_step_limit"),
    ("nemotron_h", {"head_dim": None}, CheckpointError, "head_dim"),
    ("kimi_linear", {"layer_types": ["linear_attention"] * 4}, UnsupportedModelError, "without full_attention"),
    ("kimi_linear", {"layer_types": ["full_attention", "conv"] * 2}, UnsupportedModelError, '"conv"'),
    ("kimi_linear", {"mla_use_nope": False}, UnsupportedModelError, "mla_use_nope"),
    ("kimi_linear", {"moe_router_activation_func": "softmax"}, UnsupportedModelError, "moe_router_activation_func"),
    ("kimi_linear", {"linear_conv_kernel_dim": 1}, CheckpointError, "linear_conv_kernel_dim"),
    ("kimi_linear", {"num_expert_group": 3}, CheckpointError, "num_expert_group"),
    ("kimi_linear", {"num_key_value_heads": 2}, CheckpointError, "num_key_value_heads"),
]


@pytest.mark.parametrize("name, keys, error, text", WRONG, ids=lambda v: str(v)[:40])
def test_refused(name, keys, error, text, written, tmp_path):
    config = json.loads((Path(written(NAMES[name])) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | keys))
    with pytest.raises(error, match=text):
        engine(str(tmp_path), load_format="dummy")
