"""Contents of quantised checkpoints beside codes and scales: zero points of symmetric weights, scales of a KV cache, MTP layers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import family_models_special as rows_b
import family_parity
import quantized_formats as qf
from test_quantized_formats import BY_NAME, GATE, MODEL, ODD, assert_same, is_module, quantized, refused, write

from lynx_rt import _C, CheckpointError

NEUTRAL = 0x88888888 - (1 << 32)  # eight int4 codes of 0


def groups(*weights):
    config = qf.ct("pack-quantized", {})
    config["config_groups"] = {f"group_{i}": {"weights": w, "targets": ["Linear"]} for i, w in enumerate(weights)}
    return config


@pytest.mark.parametrize("symmetric_first", [True, False])
def test_symmetric_and_asymmetric_groups(plain, tmp_path, symmetric_first):
    """Which of them a module is in, its zero points tell."""
    tensors, config = plain(MODEL["bfloat16"])
    random, codes, values = np.random.default_rng(3), {}, {}
    for name, tensor in tensors.items():
        codes[name] = values[name] = tensor
        if is_module(name, tensor, False):
            del codes[name]
            stored, value = qf.packed(4, 32, symmetric="down_proj" in name)(name, *tensor.shape, random)
            codes |= stored
            values[name] = value
    kinds = [qf.ints(4, "group", 32, symmetric) for symmetric in (symmetric_first, not symmetric_first)]
    assert_same(tmp_path, codes, values, config, groups(*kinds))


# fmt: off
ZEROS = [
    ("ct_int4_group", MODEL["bfloat16"], lambda n, g: torch.full((n // 8, g), NEUTRAL, dtype=torch.int32)),
    ("ct_int4_group", MODEL["bfloat16"], lambda n, g: torch.zeros(n, g, dtype=torch.int8)),
    ("ct_int4_channel", ODD, lambda n, g: torch.full((-(-n // 8), g), NEUTRAL, dtype=torch.int32)),
    ("ct_int8_w8a8", MODEL["bfloat16"], lambda n, g: torch.zeros(n, g, dtype=torch.int8)),
    ("ct_fp8_channel", MODEL["bfloat16"], lambda n, g: torch.zeros(n, g, dtype=torch.bfloat16)),
    ("ct_naive_fp8", MODEL["bfloat16"], lambda n, g: torch.zeros(n, g).to(torch.float8_e4m3fn)),
]
# fmt: on


@pytest.mark.parametrize("name, tiny, zeros", ZEROS, ids=[f"{i}-{z[0]}" for i, z in enumerate(ZEROS)])
def test_neutral_zero_points_of_symmetric_weights(plain, tmp_path, name, tiny, zeros):
    form = BY_NAME[name]
    tensors, config = plain(tiny)
    codes, values = quantized(form, tensors, config)
    for scale in [n for n in codes if n.endswith("_scale")]:
        codes[scale.removesuffix("_scale") + "_zero_point"] = zeros(*codes[scale].shape)
    assert_same(tmp_path, codes, values, config, form.config)
    point = next(n for n in codes if n.startswith(GATE.replace("layers.1", "layers.0")) and n.endswith("_zero_point"))
    codes[point] = codes[point].clone()
    codes[point].view(torch.uint8).view(-1)[0] += 1
    bad = write(tmp_path / "bad", codes, config | {"quantization_config": form.config})
    refused(bad, CheckpointError, "1 contradictory", point, "zero points that are not 0", "symmetric")


SPELLINGS = ["k_scale", "v_scale", "q_scale", "kv_scale", "prob_output_scale", "k_zero_point", "v_zero_point", "attn.k_scale", "attn.v_scale",
             "attn.kv_scale", "attn.q_scale", "attn.prob_scale", "k_proj.k_scale", "v_proj.v_scale", "qkv_proj.k_scale", "qkv_proj.v_scale",
             "k_proj.output_scale", "v_proj.output_scale", "q_proj.output_scale", "k_proj.output_zero_point", "qkv_proj.output_scale"]  # fmt: skip


@pytest.mark.parametrize("name", ["none", "fp8_block", "ct_int4_group", "gptq", "awq"])
def test_scales_of_a_kv_cache(plain, tmp_path, name):
    """Whatever quantised the weights, or nothing did; the cache is not quantised, and inspect says so."""
    form = BY_NAME.get(name)
    tensors, config = plain(MODEL[form.dtype if form else "bfloat16"])
    codes, values = quantized(form, tensors, config) if form else (dict(tensors), dict(tensors))
    extra = {f"model.layers.0.self_attn.{s}": torch.full((1,), 0.5) for s in SPELLINGS}
    extra["model.layers.1.self_attn.attn.k_scale"] = torch.full((), 0.5)
    if form:
        assert_same(tmp_path, codes | extra, values, config, form.config)
    else:
        write(tmp_path / "quantized", codes | extra, config)
    assert _C.inspect(str(tmp_path / "quantized"))["not_used"] == [
        f"{len(SPELLINGS) + 1} scales of a quantised KV cache, which is kept unquantised"
    ]
    more = {"model.layers.0.self_attn.o_scales": torch.ones(1), "model.layers.0.mlp.output_scale": torch.ones(1)}
    bad = write(tmp_path / "bad", codes | more, config | ({"quantization_config": form.config} if form else {}))
    refused(bad, CheckpointError, "2 unexpected", *more)


@pytest.mark.parametrize("name", ["fp8_block", "ct_int4_group", "gptq", "awq"])
@pytest.mark.parametrize("eh_proj", [True, False])
def test_a_quantised_layer_of_further_tokens(plain, tmp_path, name, eh_proj):
    form = BY_NAME[name]
    tensors, config = plain(MODEL[form.dtype])
    last = f"model.layers.{config['num_hidden_layers'] - 1}."
    further = f"model.layers.{config['num_hidden_layers']}."
    copies = {n.replace(last, further): t.clone() for n, t in tensors.items() if n.startswith(last)}
    if eh_proj:
        copies[further + "eh_proj.weight"] = torch.zeros(96, 192, dtype=tensors[last + "input_layernorm.weight"].dtype)
    codes, values = quantized(form, tensors | copies, config)
    assert_same(tmp_path, codes, {n: v for n, v in values.items() if not n.startswith(further)}, config, form.config)


def test_activations_of_any_module(plain, tmp_path):
    form = BY_NAME["ct_int8_w8a8"]
    tensors, config = plain(MODEL["bfloat16"])
    codes, values = quantized(form, tensors, config)
    for part in ("input_scale", "input_zero_point", "output_scale", "output_zero_point"):
        codes[GATE + part] = torch.full((1,), 3.0)
    assert_same(tmp_path, codes, values, config, form.config)


def first_tokens(folder, **options):
    """(logits, model info) of an engine that quantises to int4 anew."""
    engine = _C.Engine(str(folder), num_threads=1, max_num_seqs=2, quantization="int4", **options)
    return engine.forward([3, 7, 1, 44]), engine.model_info()


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("name", ["fp8_block", "ct_int4_group", None])
def test_a_cached_start_decodes_nothing(plain, tmp_path, family, name):
    """quantization_cache has what is made of the weights, so that a second start reads none of them; nor does it transpose MLA's."""
    if family == "deepseek_v3":
        row = next(row for row in rows_b.ROWS if row.id == "deepseek_v3-bf16")
        folder = Path(family_parity.write(row, tmp_path / "made"))
        tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
        bias = "model.layers.1.mlp.gate.e_score_correction_bias"
        tensors[bias] = tensors[bias].float()  # as published files have it; of bfloat16 a copy would be made
    else:
        tensors, config = plain(MODEL["bfloat16"])
    form = BY_NAME.get(name)
    if form:
        codes, _ = quantized(form, tensors, config)
        folder = write(tmp_path / "model", codes, config | {"quantization_config": form.config})
    else:
        folder = write(tmp_path / "model", tensors, config)
    cache = {"quantization_cache": str(tmp_path / "cache")}
    expected, without = first_tokens(folder)
    # Quantised weights stay as they are, except for FP8, which is quantised anew like 16 bit.
    decoded = {"quantization": "dequantize" if name == "fp8_block" else "none"}
    copied = _C.Engine(str(folder), num_threads=1, max_num_seqs=2, **decoded).model_info()["copied_weight_bytes"]
    assert without["copied_weight_bytes"] == copied and (copied > 0) == (form is not None or family == "deepseek_v3")
    first, filling = first_tokens(folder, **cache)
    second, cached = first_tokens(folder, **cache)
    assert filling["copied_weight_bytes"] == copied and cached["copied_weight_bytes"] == 0
    assert cached["weight_bytes"] == without["weight_bytes"]
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)
