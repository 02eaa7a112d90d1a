"""Quantised checkpoints: each supported format decodes exactly, and contradictions are refused. test_blocks.py has products with them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
import quantized_formats as qf
import tiny_models as tm

from lynx_rt import _C, CheckpointError, UnsupportedModelError

# K is 96 or 32 in experts, 96 or 48 in attention: groups of 32 do not divide 48, and columns of 40 none of them.
MODEL = {
    dtype: tm.Tiny("quantized", (3, 1, 16), 96, 61, (4, 2, 32), dtype=dtype)
    for dtype in ("float32", "bfloat16", "float16")
}
# Odd sizes, for formats that take any.
ODD = tm.Tiny("quantized_odd", (3, 1, 14), 54, 59, (3, 2, 37), layers=1, dtype="bfloat16")
TOKENS = [3, 7, 1, 44, 9]
BY_NAME = {f.name: f for f in qf.FORMATS}


def is_module(name, tensor, experts_only):
    experts = ".experts." in name
    return name.endswith("_proj.weight") and tensor.ndim == 2 and (experts or not experts_only)


def write(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def quantized(form, tensors, config):
    """Returns the tensors of the quantised checkpoint, and of one with the values that they decode to."""
    random = np.random.default_rng(sum(form.name.encode()))
    codes, values = {}, {}
    for name, tensor in tensors.items():
        if is_module(name, tensor, form.experts_only):
            stored, decoded = form.write(name, *tensor.shape, random)
            codes |= stored
            values[name] = decoded.to(getattr(torch, config["dtype"])).contiguous()
            assert values[name].isfinite().all()
        else:
            codes[name] = values[name] = tensor
    return codes, values


def logits(folder, quantization="dequantize"):
    options = {"dtype": "float32", "num_threads": 1, "max_num_seqs": 2, "quantization": quantization}
    return _C.Engine(str(folder), **options).forward(TOKENS)


def assert_same(tmp_path, codes, values, config, quantization):
    expected = logits(write(tmp_path / "plain", values, config))
    found = logits(write(tmp_path / "quantized", codes, config | {"quantization_config": quantization}))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", qf.FORMATS, ids=lambda f: f.name)
def test_decodes_exactly(plain, tmp_path, form):
    tensors, config = plain(MODEL[form.dtype])
    codes, values = quantized(form, tensors, config)
    assert_same(tmp_path, codes, values, config, form.config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name, quantization", [("fp8_block", "int8"), ("ct_int4_act_order", "int4")])
def test_quantised_anew(plain, tmp_path, name, quantization, tied):
    """Weights are decoded one after the other as they are quantised, which lets go of what was decoded: the same bits as from
    a checkpoint that holds the decoded ones."""
    form = BY_NAME[name]
    tiny = tm.Tiny("anew", (4, 2, 32), 128, 97, (3, 2, 64), layers=2, dtype="bfloat16", tied=tied)
    tensors, config = plain(tiny)
    codes, values = quantized(form, tensors, config)
    expected = logits(write(tmp_path / "plain", values, config), quantization=quantization)
    folder = write(tmp_path / "quantized", codes, config | {"quantization_config": form.config})
    np.testing.assert_array_equal(logits(folder, quantization=quantization), expected)


def test_progress_of_decoding(plain, tmp_path):
    """Decoding takes long enough to report its progress."""
    form = BY_NAME["fp8_block"]
    tensors, config = plain(MODEL[form.dtype])
    codes, _ = quantized(form, tensors, config)
    folder = str(write(tmp_path, codes, config | {"quantization_config": form.config}))
    seen = []
    options = {"num_threads": 1, "max_num_seqs": 2, "quantization": "dequantize"}
    e = _C.Engine(folder, **options, on_load_progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 10 and seen == sorted(seen) and {total for _, total in seen} == {e.model_info()["weight_bytes"]}
    assert seen[-1][0] == seen[-1][1]


def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def test_memory_of_quantised_anew(plain, tmp_path):
    """Once quantised, a model takes the memory of what it became; decoded it would take 24 MB, as int4 6."""
    form = BY_NAME["fp8_block"]
    tensors, config = plain(tm.Tiny("large", (4, 2, 16), 256, 97, (8, 2, 640), layers=3, dtype="bfloat16"))
    codes, _ = quantized(form, tensors, config)
    folder = write(tmp_path, codes, config | {"quantization_config": form.config})
    decoded = next(o for o in _C.inspect(str(folder))["options"] if o["quantization"] == "dequantize")
    assert decoded["anonymous_weight_bytes"] > 22 << 20
    logits(folder, quantization="int4")  # what stays of a first engine
    before = anonymous_bytes()
    e = _C.Engine(str(folder), num_threads=1, max_num_seqs=2, quantization="int4")
    assert anonymous_bytes() - before < 12 << 20
    assert np.isfinite(e.forward(TOKENS)).all()


ANY_SIZE = ["fp8_block", "fp8_padded_with_0", "fp8_row_1d", "fp8_tensor", "ct_int4_group", "ct_int4_group_asymmetric", "ct_int4_channel",
            "ct_int8_channel_asymmetric", "ct_int8_w8a8", "ct_fp8_channel"]  # fmt: skip


@pytest.mark.parametrize("name", ANY_SIZE)
def test_odd_sizes(plain, tmp_path, name):
    tensors, config = plain(ODD)
    codes, values = quantized(BY_NAME[name], tensors, config)
    assert_same(tmp_path, codes, values, config, BY_NAME[name].config)


def test_fused_experts(plain, tmp_path):
    """One tensor holds all experts, another the scales of all."""
    form = BY_NAME["fp8_block"]
    tensors, config = plain(tm.Tiny("fused", (3, 1, 14), 54, 59, (3, 2, 37), layers=1, dtype="bfloat16", fused=True))
    random, codes, values = np.random.default_rng(1), dict(tensors), dict(tensors)
    for weight, tensor in tensors.items():
        if ".experts." not in weight:
            continue
        each = [form.write(weight, *tensor.shape[1:], random) for _ in range(tensor.shape[0])]
        values[weight] = torch.stack([value for _, value in each]).to(torch.bfloat16)
        for part, first in each[0][0].items():
            codes[part] = torch.stack([stored[part].view(torch.uint8) for stored, _ in each]).view(first.dtype)
    assert_same(tmp_path, codes, values, config, form.config)


def test_formats_of_groups(plain, tmp_path):
    """Modules of different groups, told apart by what the file holds; scales of the KV cache are left alone."""
    tensors, config = plain(MODEL["bfloat16"])
    codes, values = quantized(BY_NAME["ct_int4_group"], tensors, config)
    for name, tensor in tensors.items():
        if not is_module(name, tensor, False) or not ("down_proj" in name or "self_attn" in name):
            continue
        for part in [n for n in codes if n.startswith(name)]:
            del codes[part]
        values[name] = tensor
        if "self_attn.v_proj" in name:  # not quantised
            codes[name] = tensor
            codes[name.replace("v_proj.weight", "v_scale")] = torch.ones(1)
            continue
        write_one = (
            qf.packed(8, None)
            if "down_proj" in name
            else qf.fp8(rows=True, suffix="_scale", scale_dtype=qf.BF16, product_dtype=None)
        )
        stored, value = write_one(name, *tensor.shape, np.random.default_rng(5))
        codes |= stored
        values[name] = value.to(torch.bfloat16)
    quantization = qf.ct("mixed-precision", {}, kv_cache_scheme={"num_bits": 8})
    weights = [("pack-quantized", qf.ints(4, "group", 32)), ("pack-quantized", qf.ints(8, "channel")),
               ("float-quantized", qf.floats(8, "channel"))]  # fmt: skip
    quantization["config_groups"] = {
        f"group_{i}": {"format": f, "weights": w, "targets": []} for i, (f, w) in enumerate(weights)
    }
    assert_same(tmp_path, codes, values, config, quantization)


def test_block_scales_as_transformers_multiplies():
    """The reference of this file against transformers' own, where sizes are those that it takes."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    for scale_dtype in (torch.float32, torch.bfloat16):
        stored, values = qf.fp8((16, 40), scale_dtype=scale_dtype)("w", 48, 120, np.random.default_rng(0))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            reference = Fp8Dequantize(None)._dequantize_one(stored["w"], stored["w_scale_inv"], dtype)
            assert torch.equal(reference, values.to(dtype))


def test_mxfp4_as_transformers_decodes():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored, values = qf.mxfp4(blocks=True)("w", 6, 96, np.random.default_rng(0))
    reference = convert_moe_packed_tensors(stored["w_blocks"][None], stored["w_scales"][None])
    assert torch.equal(reference[0].T, values.to(torch.bfloat16))


def test_every_e4m3_code(plain, tmp_path):
    """torch's own table is the reference; 0x7f and 0xff are NaN."""
    tensors, config = plain(MODEL["float32"])
    name = "model.layers.0.self_attn.o_proj.weight"  # [96, 48]
    codes = torch.arange(96 * 48, dtype=torch.int32).to(torch.uint8).reshape(96, 48)
    codes[(codes & 0x7F) == 0x7F] = 0
    codes = codes.view(torch.float8_e4m3fn)
    scale = torch.full((1, 1), 2.0**-9)
    values = tensors | {name: codes.float() * scale}
    assert_same(
        tmp_path, tensors | {name: codes, name + "_scale": scale}, values, config, qf.FP8 | {"weight_block_size": None}
    )


def refused(folder, error, *words):
    with pytest.raises(error) as caught:
        _C.Engine(str(folder), num_threads=1, max_num_seqs=2)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.field


GATE = "model.layers.1.mlp.experts.2.gate_proj."  # [32, 96]


def drop(name):
    return lambda tensors: tensors.pop(GATE + name)


def replace(name, make):
    return lambda tensors: tensors.update({GATE + name: make(tensors[GATE + name]).contiguous()})


def add(name, tensor):
    return lambda tensors: tensors.update({GATE + name: tensor})


def set_element(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


# fmt: off
DAMAGED = [
    ("fp8_block", drop("weight_scale_inv"), ["1 missing", GATE + "weight_scale_inv"]),
    ("fp8_block", replace("weight_scale_inv", lambda t: t[:, :2]), ["1 of the wrong shape", "weight_scale_inv", "expected [2, 3]", "got [2, 2]"]),
    ("fp8_block", replace("weight_scale_inv", lambda t: t.repeat(2, 1)), ["wrong shape", "expected [2, 3]", "got [4, 3]", "filled with 0 or 1"]),
    ("fp8_block", replace("weight_scale_inv", lambda t: t.to(torch.int32)), ["wrong dtype", "F32 or BF16 or F16", "got I32"]),
    ("fp8_block", replace("weight", lambda t: t[:-1]), ["wrong shape", GATE + "weight", "expected [32, 96]", "got [31, 96]"]),
    ("fp8_block", replace("weight", lambda t: t.view(torch.float8_e5m2)), ["wrong dtype", GATE + "weight", "F8_E5M2", "unexpected", "weight_scale_inv"]),
    ("fp8_block", replace("weight", lambda t: t.view(torch.int8)), ["wrong dtype", "fp8: float8, a scale to 16x40", "got I8"]),
    ("fp8_block", replace("weight", lambda t: t.to(torch.bfloat16)), ["1 unexpected", "weight_scale_inv"]),
    ("fp8_block", add("weight_scale", torch.ones(2, 3)), ["1 unexpected", "weight_scale"]),
    ("fp8_padded_with_0", replace("weight_scale_inv", set_element(0.5)), ["wrong shape", "filled with 0 or 1"]),
    ("ct_int4_group", drop("weight_scale"), ["1 missing", GATE + "weight_scale"]),
    ("ct_int4_group", drop("weight_shape"), ["1 missing", GATE + "weight_shape"]),
    ("ct_int4_group", drop("weight_packed"), ["1 missing", GATE + "weight\"", "2 unexpected"]),
    ("ct_int4_group", replace("weight_shape", set_element(95)), ["contradictory", "weight_shape", "says [32, 95], expected [32, 96]"]),
    ("ct_int4_group", replace("weight_shape", lambda t: t.repeat(2)), ["wrong shape", "weight_shape", "[2]", "[4]"]),
    ("ct_int4_group", replace("weight_packed", lambda t: t[:, :-1]), ["wrong shape", "weight_packed", "[32, 12]", "[32, 11]"]),
    ("ct_int4_group", replace("weight_packed", lambda t: t.to(torch.int64)), ["wrong dtype", "weight_packed", "I32", "I64"]),
    ("ct_int4_group", add("weight_zero_point", torch.zeros(4, 3, dtype=torch.int32)), ["contradictory", "weight_zero_point", "not 0", "symmetric"]),
    ("ct_int4_group", add("weight_global_scale", torch.ones(1)), ["1 unexpected", "weight_global_scale"]),
    ("ct_int4_group_asymmetric", drop("weight_zero_point"), ["1 missing", "weight_zero_point"]),
    ("ct_int4_group_asymmetric", replace("weight_zero_point", lambda t: t.T), ["wrong shape", "weight_zero_point", "[4, 6]", "[6, 4]"]),
    ("ct_int4_group_asymmetric", replace("weight_zero_point", lambda t: t.to(torch.int8)), ["wrong dtype", "weight_zero_point"]),
    ("ct_int4_act_order", replace("weight_g_idx", set_element(6)), ["contradictory", "weight_g_idx", "holds group 6 where there are 6"]),
    ("ct_int4_act_order", replace("weight_g_idx", set_element(-1)), ["contradictory", "weight_g_idx", "holds group -1"]),
    ("ct_int4_act_order", replace("weight_g_idx", lambda t: t[1:]), ["wrong shape", "weight_g_idx", "[96]", "[95]"]),
    ("ct_mxfp4", replace("weight_scale", lambda t: t.float()), ["wrong dtype", "weight_scale", "U8"]),
    ("mxfp4", replace("weight_blocks", lambda t: t.reshape(32, 48)), ["wrong shape", "weight_blocks", "[32, 3, 16]", "[32, 48]"]),
    ("mxfp4", drop("weight_scales"), ["1 missing", "weight_scales"]),
    ("gptq", drop("scales"), ["1 missing", GATE + "scales"]),
    ("gptq", drop("qzeros"), ["1 missing", GATE + "qzeros"]),
    ("gptq", replace("scales", lambda t: t[:2]), ["wrong shape", "scales", "[3, 32]", "[2, 32]"]),
    ("gptq", replace("qweight", lambda t: t.T), ["wrong shape", "qweight", "[12, 32]", "[32, 12]"]),
    ("gptq", replace("qzeros", lambda t: t[:, :-1]), ["wrong shape", "qzeros", "[3, 4]", "[3, 3]"]),
    ("gptq", replace("qweight", lambda t: t.float()), ["wrong dtype", "qweight", "I32", "F32"]),
    ("gptq_act_order", replace("g_idx", set_element(-1)), ["contradictory", "g_idx", "holds group -1"]),
    ("gptq_act_order", replace("bias", set_element(1)), ["1 unexpected", GATE + "bias"]),
    ("awq", drop("qweight"), ["1 missing", GATE + "weight", "2 unexpected"]),
    ("awq", replace("qweight", lambda t: t.T), ["wrong shape", "qweight", "[96, 4]"]),
    ("awq", add("g_idx", torch.zeros(96, dtype=torch.int32)), ["1 unexpected", "g_idx"]),
]
# fmt: on


@pytest.mark.parametrize("name, damage, words", DAMAGED, ids=[f"{i}-{d[0]}" for i, d in enumerate(DAMAGED)])
def test_damaged(plain, tmp_path, name, damage, words):
    form = BY_NAME[name]
    tensors, config = plain(MODEL[form.dtype])
    codes, _ = quantized(form, tensors, config)
    damage(codes)
    refused(write(tmp_path / "bad", codes, config | {"quantization_config": form.config}), CheckpointError, *words)


def weights(base, form="pack-quantized", **keys):
    return qf.ct(form, base | keys)


INT4 = qf.ints(4, "group", 32)

# What the config says, of a file that holds something else: (the file's format, config, error, words).
# fmt: off
CONTRADICTIONS = [
    ("ct_int4_group", weights(INT4, group_size=16), ["wrong shape", "weight_scale", "[32, 6]", "[32, 3]"]),
    ("ct_int4_group", weights(INT4, num_bits=8), ["wrong shape", "weight_packed", "[32, 24]", "[32, 12]"]),
    ("ct_int4_group", weights(INT4, symmetric=False), ["missing", "weight_zero_point"]),
    ("ct_int4_group", qf.GPTQ, ["contradictory", "weight_packed", "holds I32 codes, but config.json has quantization_config gptq: int4, a scale to 32 inputs"]),
    ("ct_int4_group", None, ["contradictory", "holds I32 codes, but config.json has no quantization_config"]),
    ("ct_int4_group", qf.ct("pack-quantized", INT4, ignore=[GATE[:-1]]), ["contradictory", GATE + "weight_packed", "lists \"" + GATE[:-1] + "\" as not quantised"]),
    ("fp8_block", None, ["wrong dtype", "expected F32, BF16 or F16 with no quantization_config, got F8_E4M3"]),
    ("fp8_block", qf.FP8 | {"weight_block_size": [16, 48]}, ["wrong shape", "expected [2, 2], and more only where", "[2, 3]"]),
    ("fp8_block", qf.FP8 | {"weight_block_size": None}, ["wrong shape", "weight_scale_inv"]),
    ("fp8_block", qf.FP8 | {"modules_to_not_convert": [GATE[:-1]]}, ["contradictory", "as not quantised"]),
    ("gptq", qf.GPTQ | {"group_size": 64}, ["wrong shape", "scales", "[2, 32]", "[3, 32]"]),
    ("gptq", qf.GPTQ | {"bits": 8}, ["wrong shape", "qweight", "[24, 32]", "[12, 32]"]),
    ("gptq", qf.AWQ, ["wrong shape", "qweight", "[96, 4]", "[12, 32]"]),
    ("awq", qf.GPTQ, ["wrong shape", "qweight", "[12, 32]", "[96, 4]"]),
    ("awq", qf.AWQ | {"group_size": 48}, ["wrong shape", "scales", "[2, 32]", "[3, 32]"]),
    ("mxfp4", qf.FP8, ["contradictory", "weight_blocks", "holds U8 codes"]),
]
# fmt: on


@pytest.mark.parametrize("name, quantization, words", CONTRADICTIONS)
def test_contradictions(plain, tmp_path, name, quantization, words):
    form = BY_NAME[name]
    tensors, config = plain(MODEL[form.dtype])
    codes, _ = quantized(form, tensors, config)
    refused(write(tmp_path / "bad", codes, config | {"quantization_config": quantization}), CheckpointError, *words)


@pytest.mark.parametrize("name", ["fp8_block", "ct_int4_group", "gptq", "awq", "mxfp4"])
def test_nothing_is_quantised(plain, tmp_path, name):
    tensors, config = plain(MODEL["bfloat16"])
    bad = write(tmp_path / "bad", tensors, config | {"quantization_config": BY_NAME[name].config})
    refused(bad, CheckpointError, "quantization_config", BY_NAME[name].config["quant_method"], "no weight is quantised")


# fmt: off
UNSUPPORTED = [
    ({"quant_method": "bitsandbytes"}, ["quant_method", "\"bitsandbytes\"", "supported: awq, compressed-tensors, fp8, gptq, mxfp4"]),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ["quant_method", "modelopt"]),
    (qf.FP8 | {"fmt": "e5m2"}, ["fmt", "\"e5m2\"", "supported: e4m3"]),
    (qf.FP8 | {"expert_dtype": "fp4"}, ["expert_dtype", "fp4"]),
    (qf.GPTQ | {"bits": 3}, ["bits 3", "supported: 4, 8"]),
    (qf.GPTQ | {"checkpoint_format": "marlin"}, ["checkpoint_format", "marlin", "supported: gptq, gptq_v2"]),
    (qf.GPTQ | {"pack_dtype": "int16"}, ["pack_dtype", "int16"]),
    (qf.GPTQ | {"is_marlin_format": True}, ["is_marlin_format", "true"]),
    (qf.GPTQ | {"dynamic": {"-:a": {}, "+:b": {"bits": 3}}}, ["dynamic", "+:b", "bits 3", "supported: 4, 8"]),
    (qf.GPTQ | {"dynamic": {"b": {"checkpoint_format": "gptq_v2"}}}, ["dynamic", "checkpoint_format", "supported: bits, group_size, sym"]),
    (qf.AWQ | {"bits": 8}, ["bits 8", "supported: 4"]),
    (qf.AWQ | {"version": "gemv_fast"}, ["version", "gemv_fast", "supported: gemm"]),
    (qf.AWQ | {"zero_point": False}, ["zero_point", "false"]),
    (weights(INT4, num_bits=3), ["num_bits 3", "4, 8", "pack-quantized"]),
    (weights(INT4, type="float"), ["type", "float"]),
    (weights(INT4, strategy="token"), ["strategy", "token", "tensor, channel, group, block"]),
    (weights(INT4, strategy="tensor", symmetric=False), ["strategy", "tensor"]),
    (weights(INT4, form="nvfp4-pack-quantized"), ["format", "nvfp4-pack-quantized", "mxfp4-pack-quantized"]),
    (weights(INT4, form="quantized"), ["format", "\"quantized\""]),
    (weights(INT4, form="marlin-24"), ["format", "marlin-24"]),
    (weights(INT4, form="int-quantized", num_bits=16), ["num_bits 16", "1 to 8 with format int-quantized"]),
    (weights(qf.floats(4, "channel"), form="naive-quantized"), ["num_bits 4", "8 with format naive-quantized"]),
    (weights(qf.floats(8, "group", group_size=32), form="mxfp4-pack-quantized"), ["num_bits 8", "mxfp4-pack-quantized"]),
    (weights(qf.floats(4, "group", group_size=16), form="mxfp4-pack-quantized"), ["group_size 16"]),
    (qf.ct("pack-quantized", INT4, sparsity_config={"format": "sparse-24-bitmask"}), ["sparsity_config", "format", "sparse-24-bitmask"]),
    (qf.ct("pack-quantized", INT4, transform_config={"config_groups": {}}), ["transform_config"]),
]
MALFORMED = [
    ([], ["quantization_config", "object"]),
    ({}, ["quant_method", "missing"]),
    (qf.FP8 | {"weight_block_size": [128]}, ["weight_block_size", "two"]),
    (qf.FP8 | {"weight_block_size": [0, 128]}, ["weight_block_size", "0"]),
    (qf.FP8 | {"modules_to_not_convert": "lm_head"}, ["modules_to_not_convert", "list"]),
    (qf.GPTQ | {"bits": "4"}, ["bits", "integer"]),
    (qf.GPTQ | {"dynamic": {"+:b": 8}}, ["dynamic", "+:b", "object"]),
    (qf.GPTQ | {"dynamic": {"+:b": {"group_size": 0}}}, ["dynamic", "+:b", "group_size", "0"]),
    (qf.GPTQ | {"group_size": 0}, ["group_size", "0"]),
    (qf.GPTQ | {"group_size": -2}, ["group_size", "-2"]),
    (weights(INT4, group_size=None), ["group_size", "missing"]),
    (weights(qf.floats(8, "block"), form="float-quantized"), ["block_structure", "two"]),
    (qf.ct("pack-quantized", INT4, config_groups=None), ["config_groups", "missing"]),
    (qf.ct("pack-quantized", INT4, config_groups={}), ["config_groups", "none"]),
]
# fmt: on


@pytest.mark.parametrize(
    "quantization, error, words",
    [(q, UnsupportedModelError, w) for q, w in UNSUPPORTED] + [(q, CheckpointError, w) for q, w in MALFORMED],
    ids=lambda v: "-".join(v) if isinstance(v, list) else "",
)
def test_config(plain, tmp_path, quantization, error, words):
    tensors, config = plain(MODEL["bfloat16"])
    refused(write(tmp_path / "bad", tensors, config | {"quantization_config": quantization}), error, *words)


def test_inspect(plain, tmp_path):
    """Sizes of the decoded weights, and what they are decoded from, without decoding them."""
    form = BY_NAME["ct_int4_group"]
    tensors, config = plain(MODEL["bfloat16"])
    codes, values = quantized(form, tensors, config)
    of_plain = _C.inspect(str(write(tmp_path / "plain", values, config)))
    of_codes = _C.inspect(str(write(tmp_path / "codes", codes, config | {"quantization_config": form.config})))
    assert of_plain["quantization"] == "none"
    assert of_codes["quantization"] == "compressed-tensors: int4, a scale to 32 inputs"
    decoded = {option["quantization"]: option for option in of_codes["options"]}["dequantize"]
    for key in ("weight_bytes", "bytes_per_token"):
        assert decoded[key] == of_plain["options"][0][key] > of_codes["options"][0][key]
    assert of_codes["checkpoint_bytes"] < of_plain["checkpoint_bytes"]
