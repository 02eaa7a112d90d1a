"""Mutated checkpoints (fuzz_checkpoints.py) of several families, kinds of rope, layouts and quantised formats.
LYNX_RT_FUZZ_CHECKPOINTS is the number of cases, LYNX_RT_FUZZ_FIRST the number of the first one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
import quantized_formats as qf
from family_models_special import add_mtp_layer, experts, mla, with_yarn
from family_parity import Row, legacy_keys, write

MLA = mla(12, 8, 10, 20, 14) | experts(8, 2, 24) | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "original_max_position_embeddings": 64,
        "short_mscale": 1.0, "long_mscale": 1.1, "rope_theta": 1e4}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "hidden_size": 96, "head_dim": 16}
ROWS = [
    Row("deepseek_v3", "mla", MLA | with_yarn(mscale=1.0, mscale_all_dim=1.0), edit_tensors=lambda t: add_mtp_layer(2, t)),
    Row("deepseek_v2", "mla", mla(6, 2, 7, 10, None, 3) | experts(8, 4, 12), fused=True, edit=lambda c: legacy_keys(c)),
    Row("qwen3_moe", "sharded", QWEN, dtype="bfloat16", sharded=True),
    Row("qwen2_moe", "tied", QWEN | {"tie_word_embeddings": True, "shared_expert_intermediate_size": 20}, dtype="bfloat16"),
    Row("phimoe", "longrope", {"num_local_experts": 4, "rope_parameters": LONG}),
    Row("llama", "llama3", {"rope_parameters": LLAMA3}, dtype="float16", sharded=True),
    Row("llama4_text", "chunks", {"num_local_experts": 4, "intermediate_size_mlp": 24, "attention_chunk_size": 4, "head_dim": 12}),
    Row("gpt_oss", "windows", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 3, "head_dim": 12}),
    Row("ernie4_5_moe", "plain", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 12}),
    Row("hunyuan_v1_moe", "dynamic", {"num_experts": 4, "moe_topk": 2, "head_dim": 12, "rope_parameters": {"rope_type": "dynamic",
        "rope_theta": 1e4, "alpha": 100.0, "factor": 2.0}}),
]  # fmt: skip
FORMATS = [
    "fp8_block",
    "ct_int4_group_asymmetric",
    "ct_int4_act_order",
    "ct_int8_w8a8",
    "ct_mxfp4",
    "mxfp4",
    "gptq_act_order",
    "awq",
]


def quantise(form: qf.Format, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(1)
    for name in [n for n in tensors if n.endswith("_proj.weight") and (".experts." in n or not form.experts_only)]:
        stored, _ = form.write(name, *tensors.pop(name).shape, rng)
        tensors |= stored
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": form.config}))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "bases"
    for row in ROWS:
        write(row, folder / row.id)
    for name in FORMATS:
        form = next(f for f in qf.FORMATS if f.name == name)
        write(Row("qwen3_moe", name, QWEN | {"num_hidden_layers": 1}, dtype=form.dtype), folder / name)
        quantise(form, folder / name)
    return folder


def test_fuzz(bases):
    count = int(os.environ.get("LYNX_RT_FUZZ_CHECKPOINTS", "400"))
    first = os.environ.get("LYNX_RT_FUZZ_FIRST", "0")
    script = Path(__file__).with_name("fuzz_checkpoints.py")
    done = subprocess.run([sys.executable, script, bases, str(count), first], capture_output=True, text=True)
    current = bases.parent / f"bases_{first}" / "current"
    last = current.read_text() if current.exists() else "none"
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\nlast case: {last}"
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    # The mutations are neither all noticed nor all harmless.
    assert result["answer"] > 0.1 * count and result["CheckpointError"] > 0.2 * count, result
