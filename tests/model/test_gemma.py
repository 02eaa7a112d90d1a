"""Gemma 4 in an engine: pages, preemption, prefix cache, quantised weights and recordings of a model whose layers have different heads; and
configs that are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from family_models_gemma import FULL, ROWS, SLIDING
from family_parity import F32_BOUND, engine, greedy, prompts_for, reference, written_once

from lynx_rt import _C, CheckpointError, UnsupportedModelError

NAMES = {row.name: row for row in ROWS}
MISSING = "a key that is left out"  # not object(): ids of tests have to be the same in every process


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(name) -> folder of that row, made once."""
    written = written_once(tmp_path_factory)
    return lambda name: written(NAMES[name])


@pytest.fixture
def changed(checkpoint, tmp_path):
    """changed(name, keys) -> the config of that row with other keys, and no weights."""

    def copy(name, keys):
        with open(f"{checkpoint(name)}/config.json") as file:
            config = json.load(file) | keys
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not MISSING}))
        return str(tmp_path)

    return copy


# Beyond a page and beyond the windows of all rows.
PROMPTS = [np.random.default_rng(n).integers(0, 95, n).tolist() for n in (1, 19, 40, 63)]
PROMPTS += [[*PROMPTS[3][:50], 4, 5], PROMPTS[3][:33]]


@pytest.mark.parametrize("name", ["k_eq_v", "dense", "f16"])
@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"quantization": "int4"}], ids=str)
def test_bits_do_not_depend_on_pages(checkpoint, name, options):
    """Preempted or not, from the prefix cache or not, in whatever pages: the tokens and log probabilities of each prompt alone."""
    path = checkpoint(name)
    plain = engine(path, enable_prefix_caching=False, **options)
    expected = [greedy(plain, [prompt], 32)[0] for prompt in PROMPTS]
    per_token = plain.model_info()["kv_bytes_per_token"]
    scarce = engine(path, block_size=8, max_model_len=120, kv_cache_memory_bytes=160 * per_token, **options)
    assert greedy(scarce, PROMPTS, 32) == expected
    assert scarce.stats()["preemptions"] > 0
    cached = engine(path, max_num_batched_tokens=16, num_threads=2, **options)
    for _ in range(2):
        assert greedy(cached, PROMPTS, 32) == expected
    assert cached.stats()["cached_prompt_tokens"] > 0


@pytest.mark.parametrize("name", ["k_eq_v", "dense"])
def test_quantised_weights_are_near(checkpoint, name):
    """int8 has steps 18 times as fine as int4: its logits are nearer to the plain ones by far, and both are nearer than 0 is."""
    plain, *quantised = (
        engine(checkpoint(name), dtype="float32", quantization=q).forward(PROMPTS[1]) for q in ("none", "int8", "int4")
    )
    off8, off4 = (np.median(np.abs(q - plain).max(1)) for q in quantised)
    assert 0 < 4 * off8 < off4 < np.median(np.abs(plain).max(1))


def test_recorded_experts_are_those_of_transformers(checkpoint):
    """Wherever the k-th and the next probability are further apart than rounding can move them."""
    path, row = checkpoint("k_eq_v"), NAMES["k_eq_v"]
    k, prompt = row.keys["top_k_experts"], PROMPTS[2]
    e = engine(path, dtype="float32", enable_return_routed_experts=True)
    params = _C.SamplingParams()
    params.temperature, params.max_tokens, params.ignore_eos = 0.0, 1, True
    e.add_request(prompt, params)
    experts = []
    while e.has_unfinished():
        experts += [o.routed_experts for o in e.step() if o.routed_experts is not None]
    experts = np.concatenate(experts)
    model, seen = reference(row, path), []
    for layer in model.model.layers:
        layer.router.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    with torch.no_grad():
        model(torch.tensor([prompt]), use_cache=False)
    sure = 0
    for layer, probabilities in enumerate(seen):
        scores = np.log(probabilities.numpy())
        order = np.argsort(-scores, axis=1)
        gaps = -np.diff(np.take_along_axis(scores, order, 1)[:, : k + 1], axis=1)
        clear = (gaps > 2 * F32_BOUND * np.abs(scores).max(1, keepdims=True)).all(1)
        assert (experts[clear, layer] == order[clear, :k]).all()
        sure += clear.sum()
    assert sure > 0.9 * len(seen) * len(prompt)


def test_policies_act_on_probabilities(checkpoint):
    """Keys are the router's logits in nats: policies read fewer experts, and exact requests keep theirs."""
    path = checkpoint("plain")
    batch = [[3, 4, 5], [6, 7], [8, 9, 10, 11], [1], [2, 2]]
    own = greedy(engine(path, dtype="float32"), batch, 12)
    active = []
    for selection in ("topk", "cover:m=3,delta=1", "oea:k0=1", "xshare:m=3"):
        e = engine(path, dtype="float32", expert_selection=selection)
        assert greedy(e, batch, 12, exact=(0,))[0] == own[0], selection
        active.append(sum(layer["active"] for layer in e.stats()["layers"]))
    assert max(active[1:]) < active[0]


def test_vision_tensors_are_left_out(checkpoint):
    facts = _C.inspect(checkpoint("vision"))
    assert facts["keys_not_understood"] == []
    assert facts["weight_bytes"] < facts["checkpoint_bytes"]


@pytest.mark.parametrize("name, router, attention, rope", [
    ("k_eq_v", "softmax, 3 of 9 experts, normalised, a dense MLP of width 40 beside them",
     "4 query heads and 4 key/value heads of 12, 1 of 26 in 2 of 3 layers, values that are the keys in 2 of 3 layers, q/k norm of each head,"
     " norm of values, biases, window 7 in 1 of 3 layers",
     "proportional, factor 1, theta 1e+06, 6 of 26 columns; in layers with a window default, theta 10000, 12 of 12 columns"),
    ("hub", "softmax, 4 of 12 experts, normalised, a dense MLP of width 40 beside them",
     "6 query heads and 3 key/value heads of 12, 2 of 20 in 2 of 7 layers, values that are the keys in 2 of 7 layers, q/k norm of each head,"
     " norm of values, window 9 in 5 of 7 layers",
     "proportional, factor 1, theta 1e+06, 4 of 20 columns; in layers with a window default, theta 10000, 12 of 12 columns"),
    ("dense", None, "4 query heads and 2 key/value heads of 12, 2 of 20 in 2 of 3 layers, values that are the keys in 2 of 3 layers, q/k norm of"
     " each head, norm of values, window 1 in 1 of 3 layers",
     "proportional, factor 1, theta 1e+06, 4 of 20 columns; in layers with a window default, theta 10000, 12 of 12 columns"),
])  # fmt: skip
def test_inspect(checkpoint, name, router, attention, rope):
    facts = _C.inspect(checkpoint(name))
    assert (facts["router"], facts["attention"], facts["rope"]) == (router, attention, rope)
    assert facts["keys_not_understood"] == []


def test_dummy_weights(checkpoint):
    made_up, real = (engine(checkpoint("k_eq_v"), load_format=f) for f in ("dummy", "auto"))
    assert made_up.forward([3, 4, 5]).shape == real.forward([3, 4, 5]).shape
    assert made_up.model_info()["weight_bytes"] == real.model_info()["weight_bytes"]


ROPE = {FULL: {"rope_type": "proportional", "rope_theta": 1e6}, SLIDING: {"rope_type": "default", "rope_theta": 1e4}}


@pytest.mark.parametrize("keys, words", [
    ({"hidden_size_per_layer_input": 256}, ["hidden_size_per_layer_input 256", "E2B", "supported: 0"]),
    ({"hidden_size_per_layer_input": MISSING}, ["hidden_size_per_layer_input 256"]),
    ({"num_kv_shared_layers": 2}, ["num_kv_shared_layers 2", "share keys and values"]),
    ({"use_bidirectional_attention": "all"}, ["use_bidirectional_attention", "all", "vision"]),
    ({"hidden_activation": "gelu"}, ["hidden_activation", "gelu", "gelu_pytorch_tanh, silu"]),
    ({"layer_types": ["chunked_attention", FULL, FULL]}, ["layer_types", "chunked_attention", "sliding_attention"]),
    ({"per_layer_config": {"1": {"head_dim": 20}, "2": {"head_dim": 22}}}, ["per_layer_config", "20 and 22", "one head size"]),
    ({"per_layer_config": {"1": {"intermediate_size": 20}}}, ["intermediate_size", "head_dim, num_key_value_heads"]),
    ({"rope_parameters": ROPE | {SLIDING: ROPE[SLIDING] | {"partial_rotary_factor": 0.5}}}, ["partial_rotary_factor", "proportional"]),
    ({"rope_parameters": ROPE | {FULL: {"rope_type": "mrope", "rope_theta": 1}}}, ["rope_type", "mrope"]),
], ids=str)  # fmt: skip
def test_unsupported(changed, keys, words):
    refused(changed("plain", keys), UnsupportedModelError, words)


@pytest.mark.parametrize("keys, words", [
    ({"layer_types": [FULL]}, ["layer_types", "3", "1"]),
    ({"per_layer_config": {"3": {"head_dim": 20}}}, ["3", "number of a layer", "0 to 2"]),
    ({"per_layer_config": {"one": {"head_dim": 20}}}, ["one", "number of a layer"]),
    ({"per_layer_config": {"1": {"head_dim": 21}}}, ["head_dim", "even", "21"]),
    ({"per_layer_config": {"1": {"num_key_value_heads": 3}}}, ["num_key_value_heads", "divisor", "4", "3"]),
    ({"rope_parameters": {FULL: ROPE[FULL]}}, ["sliding_attention", "missing"]),
    ({"sliding_window": 0}, ["sliding_window", "0"]),
    ({"final_logit_softcapping": 0}, ["final_logit_softcapping", "0"]),
    ({"top_k_experts": 9}, ["top_k_experts", "9"]),
    ({"num_experts": None}, ["num_experts", "missing"]),
    ({"model_type": "gemma4"}, ["text_config", "missing"]),
], ids=str)  # fmt: skip
def test_contradictions(changed, keys, words):
    refused(changed("plain", keys), CheckpointError, words)


def refused(path, error, words):
    with pytest.raises(error) as caught:
        _C.Engine(path, num_threads=1, load_format="dummy")
    assert type(caught.value) is error and caught.value.field
    for word in words:
        assert word in str(caught.value)


def test_prompts_reach_beyond_pages_and_windows():
    assert max(len(p) for p in PROMPTS) > 3 * 16 >= 3 * max(r.keys["sliding_window"] for r in ROWS)
    assert all(max(len(p) for p in prompts_for(row)) > 16 for row in ROWS)
