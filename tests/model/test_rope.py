"""Angles and factors of rotary embeddings against transformers' own functions, from the same keys of config.json, and
refused keys. (The llama rows of family_models_plain.py test whole models with each kind.)"""

import copy
import json
import math

import numpy as np
import pytest
from transformers import HunYuanMoEV1Config, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lynx_rt import CheckpointError, UnsupportedModelError, _C_testing

CONTEXT = 4096  # max_position_embeddings


def angles(keys, max_positions=CONTEXT, head_dim=64):
    return _C_testing.rope_angles(json.dumps(keys), head_dim, max_positions)


def expected(keys, max_positions, head_dim):
    """transformers' inverse frequencies and factor for a sequence of max_positions tokens."""
    keys = {k: v for k, v in keys.items() if v is not None}
    config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, **copy.deepcopy(keys))
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[kind](config, seq_len=max_positions)


def check(keys, max_positions=CONTEXT, head_dim=64):
    inverse, factor = angles(keys, max_positions, head_dim)
    want, want_factor = expected(keys, max_positions, head_dim)
    assert len(inverse) == len(want)
    np.testing.assert_allclose(inverse, want.numpy(), rtol=1e-6, atol=0)
    assert factor == pytest.approx(want_factor, rel=1e-6)


def longrope(pairs, **keys):
    rng = np.random.default_rng(pairs)
    return {
        "short_factor": (1 + rng.random(pairs)).tolist(),
        "long_factor": (1 + 30 * rng.random(pairs)).tolist(),
    } | keys


KINDS = {
    "default": {},
    "linear": {"factor": 2.5},
    "linear1": {"factor": 1},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn_no_factor": {"factor": None, "original_max_position_embeddings": 512},
    "yarn_no_original": {"factor": 8.0},
    "yarn_factor1": {"factor": 1.0, "original_max_position_embeddings": 4096},
    "yarn_mscale": {"factor": 40, "original_max_position_embeddings": 128, "mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn_same_mscale": {"factor": 40, "original_max_position_embeddings": 128, "mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn_mscale_alone": {"factor": 40, "original_max_position_embeddings": 128, "mscale": 0.7, "mscale_all_dim": 0},
    "yarn_attention_factor": {"factor": 16.0, "original_max_position_embeddings": 256, "attention_factor": 1.25, "mscale": 2.0,
                              "mscale_all_dim": 1.0},
    "yarn_betas": {"factor": 32.0, "original_max_position_embeddings": 128, "beta_fast": 16, "beta_slow": 2.5},
    "yarn_betas0": {"factor": 32.0, "original_max_position_embeddings": 128, "beta_fast": 0, "beta_slow": None},
    "yarn_not_truncated": {"factor": 32.0, "original_max_position_embeddings": 512, "truncate": False},
    "yarn_one_point": {"factor": 32.0, "original_max_position_embeddings": 512, "beta_fast": 2, "beta_slow": 2, "truncate": False},
    "llama3": {"factor": 8.0, "original_max_position_embeddings": 1024, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "llama3_no_original": {"factor": 3, "low_freq_factor": 1.5, "high_freq_factor": 2},
    "llama3_step": {"factor": 4.0, "original_max_position_embeddings": 1024, "low_freq_factor": 2.0, "high_freq_factor": 2.0},
    "longrope": {"original_max_position_embeddings": 1024},
    "longrope_factor": {"original_max_position_embeddings": 1024, "factor": 2.0},
    "longrope_attention_factor": {"original_max_position_embeddings": 1024, "attention_factor": 0.75},
    "longrope_no_original": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "head_dim, partial, theta", [(64, 1.0, 10000.0), (10, 1.0, 5e5), (128, 0.5, 1e6), (26, 0.5, 100)], ids=str
)
@pytest.mark.parametrize("name", KINDS)
def test_as_transformers(name, head_dim, partial, theta):
    kind = name.split("_")[0].rstrip("1")
    rope = dict(KINDS[name])
    columns = int(head_dim * partial)
    if columns % 2:
        with pytest.raises(CheckpointError, match="even number"):
            angles({"partial_rotary_factor": partial}, head_dim=head_dim)
        return
    if kind == "longrope":
        rope = longrope(columns // 2, **rope)
    if kind == "default":  # transformers' Llama ignores the factor here: test_partial_default
        partial = 1.0
    new = {"max_position_embeddings": CONTEXT,
           "rope_parameters": {"rope_type": kind, "rope_theta": theta, "partial_rotary_factor": partial} | rope}  # fmt: skip
    older = {"max_position_embeddings": CONTEXT, "rope_theta": theta, "partial_rotary_factor": partial,
             "rope_scaling": {"type": kind} | rope}  # fmt: skip
    for max_positions in (64, 1024, 1025, CONTEXT, 3 * CONTEXT):
        check(new, max_positions, head_dim)
        check(older, max_positions, head_dim)


def test_partial_default():
    inverse, factor = angles({"rope_theta": 100.0, "partial_rotary_factor": 0.25}, head_dim=48)
    np.testing.assert_allclose(inverse, [100 ** (-2 * i / 12) for i in range(6)], rtol=1e-6)
    assert factor == 1


@pytest.mark.parametrize("keys", [
    {},
    {"rope_theta": 500.0},
    {"rope_scaling": None, "rope_theta": 500.0},
    {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}},
    {"rope_parameters": {"rope_theta": 500.0}},
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 500.0},
    {"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 700.0},
    {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 300.0}, "rope_theta": 700.0},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 3.0}},
    {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2.0}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, "original_max_position_embeddings": 512},
    {"rope_scaling": {"factor": 2.0}},
], ids=range(13))  # fmt: skip
def test_where_keys_are(keys):
    """Both spellings, theta within and beside, and what goes before what."""
    check({"max_position_embeddings": CONTEXT} | keys)


def test_no_rope_keys_at_all():
    np.testing.assert_allclose(angles({})[0], [10000 ** (-i / 32) for i in range(32)], rtol=1e-6)


@pytest.mark.parametrize("max_positions", [64, 3 * CONTEXT])
def test_hunyuan_alpha(max_positions):
    """dynamic with alpha is the same at every length."""
    rope = {
        "type": "dynamic",
        "alpha": 1000.0,
        "factor": 1.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 0.0,
    }
    config = HunYuanMoEV1Config(head_dim=64, rope_theta=10000.0, rope_scaling=dict(rope))
    want, factor = HunYuanMoEV1RotaryEmbedding.compute_ntk_alpha_rope_parameters(config)
    got, got_factor = angles(
        {"rope_theta": 10000.0, "rope_scaling": rope, "max_position_embeddings": CONTEXT}, max_positions
    )
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)
    assert got_factor == factor == 1


def test_phi_mscales():
    """Phi-3.5-MoE's factors of cosines and sines: one up to the original length, one from there on."""
    rope = longrope(32, type="longrope", short_mscale=1.25, long_mscale=1.5, original_max_position_embeddings=1024)
    keys = {"max_position_embeddings": CONTEXT, "rope_scaling": rope}
    assert [angles(keys, n)[1] for n in (1, 1024, 1025, CONTEXT)] == [1.25, 1.25, 1.5, 1.5]
    for n in (1024, 1025):
        want, _ = expected(
            {"max_position_embeddings": CONTEXT, "rope_parameters": {"rope_type": "longrope"} | rope}, n, 64
        )
        np.testing.assert_allclose(angles(keys, n)[0], want.numpy(), rtol=1e-6)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("rope, words", [
    ({"rope_type": "linear"}, ["factor", "missing"]),
    ({"rope_type": "linear", "factor": 0}, ["factor", "1"]),
    ({"rope_type": "linear", "factor": "2"}, ["factor", "number"]),
    ({"rope_type": "dynamic", "factor": None}, ["factor", "missing"]),
    ({"rope_type": 4}, ["rope_type", "string"]),
    (YARN | {"original_max_position_embeddings": 0}, ["original_max_position_embeddings", "0"]),
    (YARN | {"truncate": 1}, ["truncate", "true or false"]),
    (YARN | {"beta_fast": -1}, ["beta_fast"]),
    (YARN | {"attention_factor": "x"}, ["attention_factor"]),
    (LLAMA3 | {"low_freq_factor": 4.5}, ["high_freq_factor", "low_freq_factor", "4.5"]),
    ({k: v for k, v in LLAMA3.items() if k != "high_freq_factor"}, ["high_freq_factor", "missing"]),
    (longrope(31, rope_type="longrope"), ["short_factor", "32", "31"]),
    (longrope(32, rope_type="longrope") | {"long_factor": [1.0]}, ["long_factor", "32", "1"]),
    (longrope(32, rope_type="longrope") | {"long_factor": [0.0] * 32}, ["long_factor", "item 0"]),
    ({"rope_type": "default", "partial_rotary_factor": 2}, ["partial_rotary_factor", "2"]),
], ids=range(15))  # fmt: skip
def test_contradictions(rope, words):
    for key in ("rope_parameters", "rope_scaling"):
        with pytest.raises(CheckpointError) as caught:
            angles({"max_position_embeddings": CONTEXT, key: rope})
        assert all(word in str(caught.value) for word in [key, *words]), str(caught.value)


@pytest.mark.parametrize("rope, words", [
    ({"rope_type": "proportional"}, ["rope_type", "proportional", "default, linear, dynamic, yarn, longrope, llama3"]),
    ({"type": "mrope", "mrope_section": [1, 2]}, ["rope_type", "mrope"]),
    ({"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}, ["full_attention"]),
    ({"sliding_attention": {"rope_type": "default"}}, ["sliding_attention", "one rope for all layers"]),
], ids=range(4))  # fmt: skip
def test_unsupported(rope, words):
    for key in ("rope_parameters", "rope_scaling"):
        with pytest.raises(UnsupportedModelError) as caught:
            angles({"max_position_embeddings": CONTEXT, key: rope})
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_no_context_to_scale_from():
    for rope in (
        {"type": "dynamic", "factor": 2.0},
        {"type": "yarn", "factor": 2.0},
        {"type": "yarn", "original_max_position_embeddings": 9},
    ):
        with pytest.raises(CheckpointError, match="max_position_embeddings: missing"):
            angles({"rope_scaling": rope})


def test_dynamic_needs_columns():
    with pytest.raises(CheckpointError, match="at least 4"):
        angles({"max_position_embeddings": CONTEXT, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, head_dim=2)
    check(
        {"max_position_embeddings": CONTEXT, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        3 * CONTEXT,
        head_dim=4,
    )


def test_factor_is_finite():
    assert all(
        math.isfinite(angles({"rope_theta": 1.0, "max_position_embeddings": 9, "rope_scaling": r})[1])
        for r in (YARN, LLAMA3)
    )
