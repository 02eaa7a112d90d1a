"""Models in GGUF: their logits against those of the same weights in safetensors, for each architecture and each element type.

With quantization="dequantize", blocks are decoded to bfloat16 weights; else they are multiplied in place.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
import gguf_files as gf
from family_models_special import experts, mla, with_yarn
from family_parity import Row, engine, greedy, write, written_once

import lynx_rt
from lynx_rt import _C

TOKENS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [2.0] * 6,
        "original_max_position_embeddings": 64, "short_mscale": 1.19, "long_mscale": 1.19, "rope_theta": 1e4}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e4}}
YARN = {
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
}
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
V3 = mla(12, 8, 10, 20, 14) | experts(8, 2, 24) | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
ROWS = [
    Row("qwen3_moe", "plain", QWEN | {"norm_topk_prob": True}),
    Row("qwen3_moe", "linear", QWEN | LINEAR | {"norm_topk_prob": True, "tie_word_embeddings": True}),
    Row("qwen2_moe", "plain", QWEN | {"shared_expert_intermediate_size": 20, "norm_topk_prob": False}),
    Row("qwen3", "yarn", {"head_dim": 20} | YARN),
    Row("qwen2", "plain"),
    Row("olmoe", "plain", {"num_experts": 6, "num_experts_per_tok": 3, "clip_qkv": 1.5, "norm_topk_prob": False}),
    Row("phimoe", "longrope", {"num_local_experts": 4, "rope_parameters": LONG, "attention_bias": True, "lm_head_bias": True}),
    Row("gpt_oss", "plain", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 3, "head_dim": 12}),
    Row("deepseek_v2", "plain", mla(6, 2, 7, 10, None, 3) | experts(8, 4, 12)),
    Row("deepseek_v3", "yarn", V3 | with_yarn(mscale=0.707, mscale_all_dim=0.707)),
    Row("glm4_moe", "plain", experts(8, 2, 24) | {"first_k_dense_replace": 1, "head_dim": 16, "use_qk_norm": True, "attention_bias": True}),
    Row("llama", "llama3", {"rope_parameters": LLAMA3, "head_dim": 12}),
    Row("llama", "plain", {"attention_bias": True, "tie_word_embeddings": True}),
    Row("mixtral", "plain", {"num_local_experts": 4, "num_experts_per_tok": 2}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns folder(row) -> the checkpoint in safetensors."""
    written = written_once(tmp_path_factory)
    return lambda row: Path(written(row))


def logits(path: Path, **options) -> np.ndarray:
    e = engine(str(path), **options)
    try:
        return e.forward(TOKENS)
    finally:
        e.close()


def check_same(row: Row, file: Path, reference: Path) -> None:
    ours, expected = logits(file), logits(reference)
    if row.model_type in ("llama", "mixtral"):  # the columns of q and k lie, and are summed, in another order
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_float32(row, folder, tmp_path):
    file = tmp_path / "model.gguf"
    gf.convert(folder(row), file)
    check_same(row, file, folder(row))
    prompts = [TOKENS, TOKENS[:5]]
    ours, expected = (greedy(engine(str(p)), prompts, 16) for p in (file, folder(row)))
    assert [[t for t, _ in one] for one in ours] == [[t for t, _ in one] for one in expected]


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16], ids=lambda kind: kind.name)
def test_16_bit(kind, tmp_path):
    """Matrices in 16 bit, vectors and routers in float32, as the converter writes them: bits."""
    dtype = {Type.F16: torch.float16, Type.BF16: torch.bfloat16}[kind]
    row = Row("qwen3_moe", "half", QWEN | {"norm_topk_prob": True}, dtype=str(dtype).removeprefix("torch."))
    folder = Path(write(row, tmp_path / "hf"))
    gf.convert(folder, tmp_path / "model.gguf", kind)
    save_reference(folder, gf.read(folder)[1], dtype)
    np.testing.assert_array_equal(logits(tmp_path / "model.gguf"), logits(folder))


def save_reference(folder: Path, values: gf.Tensors, dtype: torch.dtype) -> None:
    """Writes the tensors over those of the folder: matrices of `dtype`, vectors and routers in float32."""
    tensors = {}
    for name, array in values.items():
        small = array.ndim == 1 or name.endswith(
            ("mlp.gate.weight", "shared_expert_gate.weight", "router.proj.weight", "conv1d.weight")
        )
        tensors[name] = torch.from_numpy(np.ascontiguousarray(array)).to(torch.float32 if small else dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))


WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 64,
        "norm_topk_prob": True}  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [Type.Q8_0, Type.Q4_0, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.MXFP4, Type.IQ4_NL, Type.IQ4_XS],
    ids=lambda kind: kind.name,
)
def test_blocks(kind, tmp_path):
    """Random blocks of every type, decoded: as bfloat16 weights that have the values of the package's decoder."""
    folder = Path(write(Row("qwen3_moe", "wide", WIDE, dtype="bfloat16"), tmp_path / "hf"))
    stored = gf.convert(folder, tmp_path / "model.gguf", kind, seed=kind)
    save_reference(folder, gf.originals(folder, stored), torch.bfloat16)
    exact = logits(tmp_path / "model.gguf", dtype="float32", quantization="dequantize")
    np.testing.assert_array_equal(exact, logits(folder, dtype="float32"))

    # In place, rows enter the products as int8: nothing is copied, and a request has the same bits alone and in any batch.
    facts = _C.inspect(str(tmp_path / "model.gguf"))
    assert facts["copied_weight_bytes"] == 0 and facts["weight_bytes"] == facts["checkpoint_bytes"]
    ours = logits(tmp_path / "model.gguf")
    assert 0 < np.abs(ours - exact).max() < 0.1 * np.abs(exact).max()
    assert np.corrcoef(ours.ravel(), exact.ravel())[0, 1] > 0.999
    prompts = [TOKENS, TOKENS[:5], TOKENS[3:9]]
    batch = greedy(engine(str(tmp_path / "model.gguf")), prompts, 8)
    other = engine(str(tmp_path / "model.gguf"), max_num_batched_tokens=5, max_num_seqs=2, block_size=8, num_threads=2)
    assert [greedy(other, [prompt], 8)[0] for prompt in prompts] == batch


def test_mixed_blocks(tmp_path):
    """Types as in Q4_K_M: more bits for some matrices, in one expert block as well."""
    folder = Path(write(Row("qwen3_moe", "wide", WIDE, dtype="bfloat16"), tmp_path / "hf"))
    kinds = {"ffn_down_exps": Type.Q6_K, "attn_v": Type.Q6_K, "token_embd": Type.Q4_K, "output.": Type.Q6_K, "attn_k.": Type.Q8_0,
             "ffn_up_exps": Type.Q5_K}  # fmt: skip

    def kind(name: str) -> Type:
        return next((kind for part, kind in kinds.items() if part in name), Type.Q4_K)

    stored = gf.convert(folder, tmp_path / "model.gguf", kind, seed=1)
    save_reference(folder, gf.originals(folder, stored), torch.bfloat16)
    ours = logits(tmp_path / "model.gguf", dtype="float32", quantization="dequantize")
    np.testing.assert_array_equal(ours, logits(folder, dtype="float32"))
    assert np.corrcoef(logits(tmp_path / "model.gguf").ravel(), ours.ravel())[0, 1] > 0.998


def test_mxfp4_of_gpt_oss(tmp_path):
    row = Row("gpt_oss", "mxfp4", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 3, "head_dim": 32,
              "hidden_size": 64, "intermediate_size": 32}, dtype="bfloat16")  # fmt: skip
    folder = Path(write(row, tmp_path / "hf"))
    stored = gf.convert(folder, tmp_path / "m.gguf", lambda n: Type.MXFP4 if "_exps" in n else Type.BF16, seed=3)
    config, tensors = gf.read(folder)
    for layer in range(config["num_hidden_layers"]):
        to, exps = f"model.layers.{layer}.mlp.experts.", f"blk.{layer}.ffn_"
        gate_up = np.empty_like(tensors[to + "gate_up_proj"])
        gate_up[..., ::2] = stored[exps + "gate_exps.weight"].swapaxes(1, 2)
        gate_up[..., 1::2] = stored[exps + "up_exps.weight"].swapaxes(1, 2)
        tensors |= {to + "gate_up_proj": gate_up, to + "down_proj": stored[exps + "down_exps.weight"].swapaxes(1, 2)}
    save_file(
        {n: torch.from_numpy(np.ascontiguousarray(t)).bfloat16() for n, t in tensors.items()},
        folder / "model.safetensors",
    )
    ours = logits(tmp_path / "m.gguf", dtype="float32", quantization="dequantize")
    expected = logits(folder, dtype="float32")
    assert np.corrcoef(logits(tmp_path / "m.gguf").ravel(), ours.ravel())[0, 1] > 0.999
    # Vectors and routers are float32 in the one and bfloat16 in the other.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_split(folder, tmp_path):
    gf.convert(folder(ROWS[0]), tmp_path / "model.gguf", parts=7)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 2 and files[0].name.startswith("model-00001-of-0000")
    for file in (files[0], files[-1]):
        check_same(ROWS[0], file, folder(ROWS[0]))


def test_a_tensor_for_each_expert(folder, tmp_path):
    """Mixtral's files of 2023."""
    row = next(row for row in ROWS if row.model_type == "mixtral")
    gf.convert(folder(row), tmp_path / "model.gguf", one_each=True)
    check_same(row, tmp_path / "model.gguf", folder(row))


def test_latent_in_one_tensor(folder, tmp_path):
    """DeepSeek's files before 2025-04: kv_b in one tensor, and the sizes of a head under other keys."""
    row = next(row for row in ROWS if row.model_type == "deepseek_v3")
    config, _ = gf.read(folder(row))
    head = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    keys = {"head_count_kv": config["num_attention_heads"], "key_length": head, "value_length": config["v_head_dim"],
            "key_length_mla": None, "value_length_mla": None}  # fmt: skip
    metadata = {f"deepseek2.attention.{key}": value for key, value in keys.items()}
    gf.convert(folder(row), tmp_path / "model.gguf", old_latent=True, metadata=metadata)
    check_same(row, tmp_path / "model.gguf", folder(row))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("qwen3moe.attention.sliding_window", 4, "sliding_window 4 is not supported; supported: none"),
        (
            "qwen3moe.rope.scaling.type",
            "spiral",
            'rope.scaling.type "spiral" is not supported; supported: none, linear, yarn',
        ),
        ("qwen3moe.rope.scaling.yarn_attn_factor", 1.5, "yarn_attn_factor 1.5 is not supported; supported: 1"),
        ("qwen3moe.rope.dimension_count", 8, "rope.dimension_count 8 is not supported; supported: 16"),
        ("qwen3moe.expert_gating_func", 2, "expert_gating_func 2 is not supported; supported: 1"),
        ("qwen3moe.expert_weights_norm", False, "expert_weights_norm false is not supported; supported: true"),
        ("qwen3moe.expert_weights_scale", 2.5, "expert_weights_scale 2.5 is not supported; supported: 1"),
        ("qwen3moe.attention.causal", False, "attention.causal false is not supported; supported: true"),
        (
            "qwen3moe.logit_scale",
            0.5,
            "have qwen3moe.logit_scale, the number 0.5, which is not supported and may change what",
        ),
        (
            "qwen3moe.attention.head_count_kv",
            [2, 1],
            "with the number 2 and the number 1 is not supported; supported: the same for",
        ),
        ("general.type", "adapter", 'general.type is "adapter"'),
        (
            "general.architecture",
            "rwkv7",
            'general.architecture "rwkv7" is not supported in GGUF; supported: llama, qwen2',
        ),
    ],
)
def test_metadata_that_are_refused(key, value, says, folder, tmp_path):
    config = gf.number_keys(json.loads((folder(ROWS[0]) / "config.json").read_text()))
    architecture = "rwkv7" if key == "general.architecture" else "qwen3moe"
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    for name, known in (
        {f"qwen3moe.{k}": v for k, v in config.items()} | ({key: value} if "architecture" not in key else {})
    ).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(known), writer.add_array)(name, known)
    writer.add_tensor("token_embd.weight", np.zeros((97, 48), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(lynx_rt.UnsupportedModelError) as caught:
        _C.inspect(str(tmp_path / "m.gguf"))
    assert says in str(caught.value) and caught.value.field == key


@pytest.mark.parametrize("kind", [Type.Q5_0, Type.Q4_1, Type.TQ2_0], ids=lambda kind: kind.name)
def test_types_that_are_refused(kind, tmp_path):
    folder = Path(write(Row("qwen3_moe", "wide", WIDE, dtype="bfloat16"), tmp_path / "hf"))
    gf.convert(folder, tmp_path / "model.gguf", lambda name: kind if "attn_q." in name else Type.Q8_0)
    with pytest.raises(lynx_rt.CheckpointError, match=rf"self_attn\.q_proj\.weight.*{kind.name}"):
        _C.Engine(str(tmp_path / "model.gguf"))
