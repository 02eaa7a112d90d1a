"""Configs and tensors that contradict themselves or are not supported: each raises one specific exception that names the fault, at
once and without taking memory. (tests/checkpoint and tests/cpp test the parsing of config.json and safetensors.)"""

import json
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lynx_rt import _C, CheckpointError, ModelNotFoundError, UnsupportedModelError

HUGE = 10**18
MISSING = object()


@pytest.fixture(autouse=True)
def quick_and_small():
    """Nothing here may take long or much memory, however large the numbers in the config are."""
    start, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 300 << 10  # kilobytes


@pytest.fixture
def folder(tiny_path, tmp_path):
    """Returns a copy of a checkpoint, to be spoilt."""

    def copy(name="plain"):
        shutil.copytree(tiny_path(name), tmp_path / name)
        return tmp_path / name

    return copy


def change(folder: Path, **keys) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= keys
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not MISSING}))


def load(folder: Path) -> "_C.Engine":
    return _C.Engine(str(folder), num_threads=1, max_num_seqs=4)


def refused(folder: Path, error: type, *words: str) -> None:
    with pytest.raises(error) as caught:
        load(folder)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
    assert caught.value.field


COUNTS = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "num_local_experts",
          "num_experts_per_tok", "moe_intermediate_size", "intermediate_size", "decoder_sparse_step", "max_position_embeddings"]  # fmt: skip


@pytest.mark.parametrize("value", [0, -1, -(2**63), HUGE, 2**63 - 1, 10**30, 4.5, "4", [4], True], ids=str)
@pytest.mark.parametrize("key", COUNTS)
def test_no_such_size(folder, key, value):
    path = folder()
    change(path, **{key: value})
    refused(path, CheckpointError, key, "expected")


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                                 "moe_intermediate_size", "model_type"])  # fmt: skip
@pytest.mark.parametrize("value", [MISSING, None], ids=["missing", "null"])
def test_needed_keys(folder, key, value):
    path = folder()
    change(path, **{key: value})
    refused(path, CheckpointError, key, "missing")


def test_no_expert_count(folder):
    path = folder()
    change(path, num_local_experts=MISSING)
    refused(path, CheckpointError, "num_experts", "num_local_experts")


WRONG = [
    ({"num_key_value_heads": 3}, ["num_key_value_heads", "divisor", "4", "3"]),
    ({"num_key_value_heads": 8}, ["num_key_value_heads", "8"]),
    (
        {"head_dim": MISSING, "num_attention_heads": 5, "num_key_value_heads": 5},
        ["num_attention_heads", "divisor", "48", "5"],
    ),
    ({"head_dim": 15}, ["head_dim", "even", "15"]),
    ({"num_experts_per_tok": 9}, ["num_experts_per_tok", "8", "9"]),
    ({"num_hidden_layers": 16384, "num_local_experts": 65536}, ["num_local_experts", "limit"]),
    ({"rms_norm_eps": -1e-6}, ["rms_norm_eps"]),
    ({"rms_norm_eps": "1e-6"}, ["rms_norm_eps", "number"]),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, ["rope_theta"]),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, ["rope_theta"]),
    ({"rope_parameters": 5}, ["rope_parameters", "object"]),
    ({"mlp_only_layers": [-1]}, ["mlp_only_layers"]),
    ({"mlp_only_layers": "0"}, ["mlp_only_layers", "list"]),
    ({"mlp_only_layers": [0], "intermediate_size": MISSING}, ["intermediate_size", "missing"]),
    ({"eos_token_id": [2, "3"]}, ["eos_token_id", "integer"]),
    ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false"]),
    ({"norm_topk_prob": 1}, ["norm_topk_prob", "true or false"]),
    ({"model_type": 3}, ["model_type", "string"]),
]


@pytest.mark.parametrize("keys, words", WRONG, ids=lambda v: "+".join(v) if isinstance(v, dict) else "")
def test_contradictions(folder, keys, words):
    path = folder()
    change(path, **keys)
    refused(path, CheckpointError, *words)


UNSUPPORTED = [
    ({"model_type": "jamba"}, ["model_type", "jamba", "mixtral", "qwen3", "qwen3_moe"]),
    ({"rope_parameters": {"rope_type": "proportional"}}, ["rope_type", "proportional", "default, linear"]),
    ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
    (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        ["quant_method", "bitsandbytes", "awq, compressed-tensors, fp8, gptq"],
    ),
    ({"dtype": "int8"}, ["dtype", "int8"]),
]


@pytest.mark.parametrize("keys, words", UNSUPPORTED, ids=lambda v: "+".join(v) if isinstance(v, dict) else "")
def test_unsupported(folder, keys, words):
    path = folder()
    change(path, **keys)
    refused(path, UnsupportedModelError, *words)


def test_harmless_keys(folder):
    """What means nothing for this model must not stop it: a window that is switched off, null for not set, unknown keys, a context that
    nobody can use in full."""
    path = folder()
    before = load(path).forward([3, 4, 5])
    change(path, use_sliding_window=False, sliding_window=32, rope_scaling=None, head_dim=16, max_window_layers=1, colour="blue",
           max_position_embeddings=1 << 28, eos_token_id=None, num_key_value_heads=2)  # fmt: skip
    e = load(path)
    np.testing.assert_array_equal(e.forward([3, 4, 5]), before)
    assert e.model_info()["eos_token_ids"] == []


@pytest.mark.parametrize("keys, words", [
    ({"num_hidden_layers": 3}, ["missing", "model.layers.2."]),
    ({"num_hidden_layers": 16384}, ["missing", "model.layers.2.", "more"]),
    ({"num_local_experts": 9}, ["missing", "experts.8."]),
    ({"num_local_experts": 7}, ["unexpected", "experts.7.", "wrong shape", "mlp.gate.weight", "[7, 48]", "[8, 48]"]),
    ({"hidden_size": 64}, ["wrong shape", "model.embed_tokens.weight", "[101, 64]", "[101, 48]"]),
    ({"hidden_size": 1 << 24}, ["wrong shape", "16777216"]),
    ({"vocab_size": 102}, ["wrong shape", "lm_head.weight"]),
    ({"num_attention_heads": 8}, ["wrong shape", "q_proj.weight", "[128, 48]", "[64, 48]"]),
    ({"head_dim": 32}, ["wrong shape", "q_norm.weight"]),
    ({"moe_intermediate_size": 25}, ["wrong shape", "[25, 48]"]),
    ({"attention_bias": True}, ["missing", "q_proj.bias"]),
    ({"mlp_only_layers": [0]}, ["missing", "layers.0.mlp.gate_proj.weight", "unexpected"]),
    ({"tie_word_embeddings": True, "model_type": "qwen3"}, ["unexpected", "mlp.experts."]),
], ids=str)  # fmt: skip
def test_config_and_tensors_disagree(folder, keys, words):
    path = folder()
    change(path, **keys)
    refused(path, CheckpointError, *words)


def edit(path: Path, change) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


Q, GATE, GATE_UP = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.gate.weight",
    "model.layers.0.mlp.experts.gate_up_proj",
)


@pytest.mark.parametrize("name, change, words", [
    ("plain", lambda t: t.pop(Q), ["1 missing", Q]),
    ("plain", lambda t: t.update({"model.layers.0.self_attn.extra": np.zeros(2, np.float32)}), ["1 unexpected", "self_attn.extra"]),
    ("plain", lambda t: t.update({Q: t[Q].T.copy()}), ["1 of the wrong shape", Q, "[64, 48]", "[48, 64]"]),
    ("plain", lambda t: t.update({Q: t[Q].reshape(-1)}), ["wrong shape", Q, "[3072]"]),
    ("plain", lambda t: t.update({GATE: t[GATE].astype(np.int8)}), ["1 of the wrong dtype", GATE, "I8"]),
    ("plain", lambda t: [t.pop(k) for k in list(t) if ".experts.3." in k], ["6 missing", "experts.3."]),
    ("sparse_step", lambda t: t.update({k: v.transpose(0, 2, 1).copy() for k, v in t.items() if "gate_up" in k}),
     ["wrong shape", "gate_up_proj"]),
    ("no_groups", lambda t: t.pop(GATE_UP.replace("gate_up", "down")), ["missing", "experts.down_proj"]),
    ("no_groups", lambda t: t.update({"model.layers.0.mlp.experts.0.up_proj.weight": np.zeros((16, 96), np.float32)}),
     ["1 unexpected", "experts.0.up_proj"]),
    ("dense", lambda t: t.pop("lm_head.weight"), ["missing", "lm_head.weight"]),
], ids=range(10))  # fmt: skip
def test_spoilt_tensors(folder, name, change, words):
    path = folder(name)
    edit(path, change)
    refused(path, CheckpointError, *words)


def test_every_kind_in_one_error(folder):
    path = folder()

    def spoil(t):
        t["surplus"] = np.zeros(1, np.float32)
        t[Q] = t[Q].T.copy()
        t[GATE] = t[GATE].astype(np.int32)
        del t["model.norm.weight"]

    edit(path, spoil)
    refused(
        path,
        CheckpointError,
        "1 missing",
        "1 unexpected",
        "1 of the wrong shape",
        "1 of the wrong dtype",
        "model.safetensors",
    )


def test_tensors_that_need_not_be_there(folder):
    """A tied head that is stored all the same, and frequencies that older checkpoints carry."""
    path = folder("f16_fused")
    before = load(path).forward([3, 4, 5])
    edit(path, lambda t: t.update({
        "lm_head.weight": t["model.embed_tokens.weight"].copy(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(11, np.float32),
    }))  # fmt: skip
    np.testing.assert_array_equal(load(path).forward([3, 4, 5]), before)


def test_weights_of_several_dtypes(folder):
    """Float16 beside float32 in one file: each tensor says its own, and whatever the config says float32 math reads both."""
    path = folder("f16_fused")
    before = _C.Engine(str(path), dtype="float32").forward([3, 4, 5])
    edit(path, lambda t: t.update({k: v.astype(np.float32) for k, v in t.items() if "norm" in k or "down_proj" in k}))
    np.testing.assert_allclose(_C.Engine(str(path), dtype="float32").forward([3, 4, 5]), before, rtol=0, atol=1e-5)


def test_not_there(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ModelNotFoundError, match=str(path)):
            load(path)


def test_config_without_weights(folder):
    path = folder()
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        load(path)


NOT_CONFIGS = ["", "{", "[]", "3", '{"model_type": "qwen3_moe", "model_type": "qwen3"}', "[" * 100_000, "\x00\xff"]


@pytest.mark.parametrize("text", NOT_CONFIGS, ids=range(7))
def test_not_a_config(folder, text):
    path = folder()
    (path / "config.json").write_text(text, encoding="latin-1")
    refused(path, CheckpointError, "config.json")
