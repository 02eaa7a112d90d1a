"""Quantised weights that are multiplied where they lie, after they were decoded in the cache: FP8, and all with activations="bfloat16".

Logits have the bits that they have with quantization="dequantize", which decodes the same weights when they are loaded; that these values
are right, test_quantized_formats.py and test_gguf.py hold.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf_files as gf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import quantized_formats as qf
import tiny_models as tm
from driving import Job, alone, engine, run
from family_parity import Row
from family_parity import write as write_family
from isas import ISAS
from test_blocks import IN_PLACE, MODEL, REPACKED, sizes
from test_gguf import WIDE
from test_quantized_formats import BY_NAME, quantized, write

from lynx_rt import _C, CheckpointError, ValidationError

TOKENS = [3, 7, 1, 44, 9]
BLOCKS_128 = qf.FP8 | {"weight_block_size": [128, 128]}
FP8 = [f for f in qf.FORMATS if "fp8" in f.name] + [
    qf.Format("fp8_block_128", BLOCKS_128, qf.fp8((128, 128))),
    qf.Format("fp8_block_128_bf16_scale", BLOCKS_128, qf.fp8((128, 128), scale_dtype=qf.BF16)),
    qf.Format("ct_fp8_block_64", qf.ct("float-quantized", qf.floats(8, "block", block_structure=[64, 64])),
              qf.fp8((64, 64), suffix="_scale", scale_dtype=qf.F16, product_dtype=None)),
]  # fmt: skip
# No size of a matrix is a multiple of 128, and some are not of 32.
LARGE = {d: tm.Tiny("fp8", (4, 1, 50), 168, 150, (4, 2, 140), layers=2, dtype=d) for d in ("float32", "bfloat16", "float16")}  # fmt: skip


def save(form: qf.Format, plain: Any, tiny: tm.Tiny, folder: Path) -> Path:
    tensors, config = plain(tiny)
    codes, _ = quantized(form, tensors, config)
    return write(folder, codes, config | {"quantization_config": form.config})


def logits(path: Path, **options: Any) -> np.ndarray:
    return _C.Engine(str(path), num_threads=1, max_num_seqs=2, **options).forward(TOKENS)


def assert_same(path: Path, isa: str, **options: Any) -> None:
    """The bits of decoding at load, in each type in which products take activations."""
    for dtype in ("float32", "bfloat16"):
        expected = logits(path, isa=isa, dtype=dtype, quantization="dequantize")
        np.testing.assert_array_equal(logits(path, isa=isa, dtype=dtype, **options), expected, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FP8, ids=lambda f: f.name)
def test_fp8(plain: Any, tmp_path: Path, form: qf.Format, isa: str) -> None:
    path = save(form, plain, LARGE[form.dtype], tmp_path / "model")
    assert_same(path, isa)
    assert sizes(path)[1:] == (0, 0), "nothing is copied"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", IN_PLACE + REPACKED, ids=lambda f: f.name)
def test_activations(plain: Any, tmp_path: Path, form: qf.Format, isa: str) -> None:
    assert_same(save(form, plain, MODEL[form.dtype], tmp_path / "model"), isa, activations="bfloat16")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.MXFP4, Type.IQ4_NL, Type.IQ4_XS], ids=lambda k: k.name)  # fmt: skip
def test_activations_with_gguf(kind: Type, tmp_path: Path, isa: str) -> None:
    folder = Path(write_family(Row("qwen3_moe", "wide", WIDE, dtype="bfloat16"), tmp_path / "hf"))
    gf.convert(folder, tmp_path / "model.gguf", kind, seed=kind)
    assert_same(tmp_path / "model.gguf", isa, activations="bfloat16")


def test_activations_are_int8_unless_stated(plain: Any, tmp_path: Path) -> None:
    path = save(BY_NAME["ct_int4_group"], plain, MODEL["bfloat16"], tmp_path / "model")
    default = logits(path)
    np.testing.assert_array_equal(default, logits(path, activations="int8"))
    assert not np.array_equal(default, logits(path, activations="bfloat16"))


@pytest.mark.parametrize("form", [BY_NAME["fp8_block"], BY_NAME["fp8_row"], FP8[-3]], ids=lambda f: f.name)
def test_sizes_of_fp8(plain: Any, tmp_path: Path, form: qf.Format) -> None:
    """Further quantisation decodes FP8 first, as it does 16 bit. What inspect says before loading is what comes."""
    path = save(form, plain, LARGE[form.dtype], tmp_path / "model")
    facts = _C.inspect(str(path))
    for option in facts["options"]:
        expected = sizes(path, quantization=option["quantization"])[:2]
        assert (option["mapped_weight_bytes"], option["anonymous_weight_bytes"]) == expected, option["quantization"]
    assert facts["weight_bytes"] == facts["checkpoint_bytes"] and facts["copied_weight_bytes"] == 0
    assert sizes(path, quantization="int8")[1] > 0


@pytest.mark.parametrize("name", ["fp8_block", "fp8_tensor", "fp8_row"])
def test_codes_that_are_no_number(plain: Any, tmp_path: Path, name: str) -> None:
    """They reach the logits of the tokens whose rows meet them, and no others, as decoded ones do."""
    form = BY_NAME[name]
    tensors, config = plain(LARGE["bfloat16"])
    codes, _ = quantized(form, tensors, config)
    bad = "model.layers.1.mlp.experts.1.gate_proj.weight"
    codes[bad].view(torch.uint8)[70, [3, 100, 167]] = torch.tensor([0x7F, 0xFF, 0x7F], dtype=torch.uint8)
    path = write(tmp_path / "model", codes, config | {"quantization_config": form.config})
    found, expected = logits(path), logits(path, quantization="dequantize")
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(found).any() and np.isfinite(found).any()


def test_gate_and_up_in_two_forms(plain: Any, tmp_path: Path) -> None:
    """An op takes both with one kind of activations, so that they are decoded where one is FP8 and the other int8."""
    config = qf.ct("mixed-precision", {})
    config["config_groups"] = {
        "a": {"targets": ["Linear"], "weights": qf.floats(8, "channel"), "format": "float-quantized"},
        "b": {"targets": ["Linear"], "weights": qf.ints(8, "channel"), "format": "int-quantized"},
    }
    tensors, model = plain(LARGE["bfloat16"])
    random, codes = np.random.default_rng(3), dict(tensors)
    for name, tensor in tensors.items():
        form = {"gate_proj": "ct_fp8_channel", "up_proj": "ct_int8_w8a8"}.get(name.split(".")[-2])
        if form and ".experts." in name:
            codes |= BY_NAME[form].write(name, *tensor.shape, random)[0]
    path = write(tmp_path / "model", codes, model | {"quantization_config": config})
    np.testing.assert_array_equal(logits(path), logits(path, quantization="dequantize"))


@pytest.mark.parametrize("form", [BY_NAME["fp8_block"], FP8[-3]], ids=lambda f: f.name)
def test_a_request_gets_the_bits_that_it_gets_alone(plain: Any, tmp_path: Path, form: qf.Format) -> None:
    path = str(save(form, plain, LARGE[form.dtype], tmp_path / "model"))
    random = np.random.default_rng(3)
    jobs = [Job(random.integers(0, 150, n).tolist(), {"logprobs": 2, "max_tokens": 5 + n % 3}) for n in (1, 2, 17, 61)]
    expected = [r.bits for r in alone(path, jobs)]
    for options in [{}, {"num_threads": 2}, {"max_num_batched_tokens": 16, "max_num_seqs": 4}]:
        assert [r.bits for r in run(engine(path, **options), jobs, check=True)] == expected, options


@pytest.mark.parametrize("change", ["cut", "grown", "missing"])
def test_scales_of_another_shape(plain: Any, tmp_path: Path, change: str) -> None:
    form = FP8[-3]
    tensors, config = plain(LARGE["bfloat16"])
    codes, _ = quantized(form, tensors, config)
    name = "model.layers.1.mlp.experts.2.down_proj.weight_scale_inv"
    codes |= {"cut": {name: codes[name][:-1]}, "grown": {name: codes[name].repeat(2, 1) * 3}}.get(change, {})
    if change == "missing":
        del codes[name]
    path = write(tmp_path / "model", {n: t.contiguous() for n, t in codes.items()}, config | {"quantization_config": form.config})  # fmt: skip
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        logits(path)


def test_another_value_of_activations(plain: Any, tmp_path: Path) -> None:
    path = save(BY_NAME["ct_int4_group"], plain, MODEL["bfloat16"], tmp_path / "model")
    with pytest.raises(ValidationError, match='activations: expected int8 or bfloat16, got "int4"') as caught:
        logits(path, activations="int4")
    assert caught.value.field == "activations"
