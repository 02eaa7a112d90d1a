"""Expert files of checkpoints whose experts are quantised, fused or transposed; tests/cpp/test_pack_experts.cc compares the records."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cpp"))
import gguf_files as gf
import tiny_models as tm
from build_tree import program, run
from gguf import GGMLQuantizationType as Type
from test_quantized_formats import BY_NAME, MODEL, quantized, write


@pytest.mark.parametrize(
    "name",
    [
        "fp8_block",
        "fp8_row",
        "fp8_tensor",
        "ct_int4_group",
        "ct_int8_w8a8",
        "gptq",
        "gptq_act_order",
        "awq",
        "ct_mxfp4",
        "mxfp4",
    ],
)
def test_quantised_safetensors(plain, tmp_path, name):
    form = BY_NAME[name]
    tensors, config = plain(MODEL[form.dtype])
    codes, _ = quantized(form, tensors, config)
    run([program("test_pack_experts"), write(tmp_path / name, codes, config | {"quantization_config": form.config})])


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.BF16])
def test_gguf(tmp_path, kind):
    folder = Path(tm.write(MODEL["bfloat16"], tmp_path / "plain"))
    gf.convert(folder, tmp_path / "model.gguf", lambda name: kind if "_exps" in name else Type.BF16)
    run([program("test_pack_experts"), tmp_path / "model.gguf"])
