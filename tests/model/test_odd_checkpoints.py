"""Checkpoints that transformers loads although file and config disagree: the engine computes what transformers computes, and warns if it
uses weights otherwise than the config says."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models_special import add_mtp_layer, experts, mla
from family_parity import F32_BOUND, Row, write
from family_parity import engine as native_engine
from safetensors.torch import load_file, save_file
from tiny_models import reference, reference_logits

from lynx_rt import _C, CheckpointError, Engine
from lynx_rt.engine.progress import warn_of_model

TOKENS = [3, 7, 1, 44, 9, 80]
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def no_unexpected_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., str]:
    """made(model_type, keys, tensors, config) -> folder of a checkpoint whose tensors and config.json were edited."""

    def make(
        model_type: str = "qwen3_moe",
        keys: dict[str, Any] = MOE,
        tensors: Callable[[Tensors], Any] = lambda _: None,
        config: Callable[[dict[str, Any]], Any] = lambda _: None,
        **row: Any,
    ) -> str:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        return write(Row(model_type, "odd", keys, edit=config, edit_tensors=tensors, **row), folder)

    return make


def engine(path: str, **options: Any) -> Any:
    """With the warnings that lynx_rt.Engine gives."""
    e = native_engine(path, **options)
    warn_of_model(Path(path), e.model_info())
    return e


def logits(path: str, **options: Any) -> np.ndarray:
    return engine(path, **{"dtype": "float32"} | options).forward(TOKENS)


def assert_as_transformers(path: str) -> None:
    expected = reference_logits(reference(path, "float32"), TOKENS)
    assert np.abs(logits(path) - expected).max() <= F32_BOUND * np.abs(expected).max()


def other_head(tensors: Tensors) -> None:
    tensors[HEAD] = torch.randn(tensors[EMBED].shape, generator=torch.Generator().manual_seed(5)).to(tensors[EMBED])


TIED = {"tie_word_embeddings": True}
FAMILIES = {
    "qwen3_moe": MOE,
    "llama": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 12},
    "deepseek_v3": mla(12, 8, 10, 20, 14) | experts(8, 2, 24) | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 24, "attention_chunk_size": 16},
    "phimoe": {"num_local_experts": 4},
}  # fmt: skip


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tied_config_and_another_head(made, model_type):
    """As merges of a trained head leave it."""
    path = made(model_type, FAMILIES[model_type] | TIED, other_head)
    with pytest.warns(UserWarning, match=r"tie_word_embeddings.*lm_head.weight.*differ"):
        e = engine(path, dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_as_transformers(path)
    assert len(e.model_info()["warnings"]) == 1
    facts = _C.inspect(path)
    assert facts["warnings"] == e.model_info()["warnings"] and not facts["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tied_config_and_the_same_head(made, dtype):
    """Stored once more, also in another dtype: tied, without a warning."""
    plain = made(keys=MOE | TIED, dtype=dtype)
    for stored in (getattr(torch, dtype), torch.float32):
        path = made(
            keys=MOE | TIED, dtype=dtype, tensors=lambda t, to=stored: t.update({HEAD: t[EMBED].to(to).clone()})
        )
        np.testing.assert_array_equal(logits(path), logits(plain))
        assert engine(path).model_info()["weight_bytes"] == engine(plain).model_info()["weight_bytes"]
        assert _C.inspect(path)["tie_word_embeddings"]


def test_another_head_by_one_value(made):
    def last_value(tensors):
        tensors[HEAD] = tensors[EMBED].clone()
        tensors[HEAD][-1, -1] += 1

    path = made(keys=MOE | TIED, tensors=last_value)
    with pytest.warns(UserWarning, match="differ"):
        assert_as_transformers(path)
    with pytest.warns(UserWarning, match="differ") as caught:
        Engine(path, skip_tokenizer_init=True).close()
    assert caught[0].filename == __file__, "it names the caller"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tied_config_and_the_head_alone(made, model_type):
    keys = FAMILIES[model_type] | TIED
    path = made(model_type, keys, lambda t: t.update({HEAD: t.pop(EMBED)}))
    np.testing.assert_array_equal(logits(path), logits(made(model_type, keys)))


def test_untied_config_needs_both(made):
    for name in (EMBED, HEAD):
        with pytest.raises(CheckpointError, match=f'1 missing: "{name}"'):
            engine(made(tensors=lambda t, name=name: t.pop(name)))


def as_int8(tensors: Tensors, name: str) -> None:
    """Compressed-tensors, a scale to a row; the same values again as floats are returned by decode()."""
    weight = tensors.pop(name).float()
    scale = weight.abs().amax(1, keepdim=True) / 127
    tensors[name] = (weight / scale).round().to(torch.int8)
    tensors[name + "_scale"] = scale


INT8 = {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {
    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}}}}}  # fmt: skip


def test_tied_config_and_a_quantised_head(made):
    def quantise(tensors):
        other_head(tensors)
        as_int8(tensors, HEAD)

    def decoded(tensors):
        quantise(tensors)
        tensors[HEAD] = tensors[HEAD].float() * tensors.pop(HEAD + "_scale")

    path, plain = (
        made(keys=MOE | TIED, tensors=quantise, config=lambda c: c.update(INT8)),
        made(keys=MOE | TIED, tensors=decoded),
    )
    with pytest.warns(UserWarning, match="differ"):
        np.testing.assert_array_equal(logits(path), logits(plain))


# Dtypes


def cast(part: str, dtype: torch.dtype) -> Callable[[Tensors], None]:
    def edit(tensors):
        for name in [n for n in tensors if part in n]:
            tensors[name] = tensors[name].to(dtype)

    return edit


@pytest.mark.parametrize("model_type, keys, part", [
    ("qwen3_moe", MOE, "experts.3.up_proj"),
    ("qwen3_moe", MOE, "experts.0.gate_proj"),
    ("qwen3_moe", MOE, "experts.5.down_proj"),
    ("qwen3_moe", MOE | {"mlp_only_layers": [1]}, "layers.1.mlp.up_proj"),
    ("deepseek_v3", FAMILIES["deepseek_v3"], "shared_experts.gate_proj"),
    ("qwen3_moe", MOE, "k_proj"),
    ("qwen3_moe", MOE, "v_proj"),
    ("qwen3_moe", MOE, HEAD),
    ("qwen3_moe", MOE, "q_norm"),
    ("gpt_oss", FAMILIES["gpt_oss"], "gate_up_proj_bias"),
    ("gpt_oss", FAMILIES["gpt_oss"], "experts.down_proj"),
    ("deepseek_v3", FAMILIES["deepseek_v3"], "kv_b_proj"),
    ("deepseek_v3", FAMILIES["deepseek_v3"], "e_score_correction_bias"),
], ids=str)  # fmt: skip
def test_mixed_dtypes(made, model_type, keys, part):
    """One tensor in another 16-bit format than the rest: requests run, with values as transformers rounds them."""
    if model_type == "qwen3_moe":
        keys = {"num_experts" if k == "num_local_experts" else k: v for k, v in keys.items()}
    path = made(model_type, keys, cast(part, torch.float16), dtype="bfloat16")
    everything = made(
        model_type, keys, lambda t: (cast(part, torch.float16)(t), cast("", torch.bfloat16)(t)), dtype="bfloat16"
    )
    ours, expected = logits(path, dtype="bfloat16"), logits(everything, dtype="bfloat16")
    assert np.abs(ours - expected).max() <= 0.05 * np.abs(expected).max()
    if ".experts." in part:  # converted: nothing is left of the other dtype
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("stated", ["float16", None])
def test_one_expert_left_unquantised(made, stated):
    """In bfloat16, beside others that are decoded to what the config says, or to the file's own."""

    def quantise(tensors):
        for name in [n for n in tensors if ".experts." in n and ".experts.2." not in n]:
            as_int8(tensors, name)

    path = made(dtype="bfloat16", tensors=quantise, config=lambda c: c.update(INT8, dtype=stated))
    assert _C.inspect(path)["dtype"] == (stated or "bfloat16")
    assert np.isfinite(logits(path)).all()
    ours, plain = logits(path), logits(made(dtype="bfloat16"))
    assert np.abs(ours - plain).max() <= 0.1 * np.abs(plain).max()


def test_float64(made):
    """Norms, and matrices, of 64 bits."""
    plain = logits(made())
    for part in ("norm", "up_proj", "mlp.gate", HEAD):
        np.testing.assert_array_equal(logits(made(tensors=cast(part, torch.float64))), plain)


@pytest.mark.parametrize("stated", [None, "auto"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_of_the_file(made, dtype, stated):
    def edit(config):
        config.pop("dtype", None)
        if stated:
            config["dtype"] = stated

    path = made(dtype=dtype, config=edit, tensors=cast("norm", torch.float32))
    assert engine(path, dtype="auto").model_info()["dtype"] == dtype == _C.inspect(path)["dtype"]


@pytest.mark.parametrize("rest", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_of_a_quantised_file(made, rest):
    """Its scales have 32 bits, which is no reason to decode to them."""

    def quantise(tensors):
        cast("", rest)(tensors)
        for name in [n for n in tensors if "_proj" in n]:
            as_int8(tensors, name)

    path = made(tensors=quantise, config=lambda c: (c.pop("dtype"), c.update(INT8)))
    expected = torch.bfloat16 if rest == torch.float32 else rest
    assert _C.inspect(path)["dtype"] == str(expected).removeprefix("torch.")


# Sizes of the config that no file of this size can have

ABSURD = [
    {"num_attention_heads": 1 << 24, "num_key_value_heads": 1 << 24},
    {"num_attention_heads": 1 << 20, "num_key_value_heads": 1 << 20, "num_hidden_layers": 100},
    {"num_attention_heads": 1 << 19, "num_key_value_heads": 1 << 19, "num_hidden_layers": 2},
    {"num_attention_heads": 64, "num_key_value_heads": 64, "num_hidden_layers": 1 << 14},
    {"num_hidden_layers": 1 << 14},
    {"num_hidden_layers": 1 << 14, "n_routed_experts": 8},
    {"num_hidden_layers": 2, "n_routed_experts": 1 << 16, "n_group": 1, "topk_group": 1},
    {"vocab_size": 1 << 24},
    {"hidden_size": 1 << 24},
    {"kv_lora_rank": 1 << 24, "qk_nope_head_dim": 1 << 16, "v_head_dim": 1 << 16},
    {"moe_intermediate_size": 1 << 24, "n_shared_experts": 1 << 10},
    {"max_position_embeddings": 1 << 28},
    {"mlp_only_layers": [1] * 1_000_000, "layer_types": ["full_attention"] * 500_000, "vocab_size": 98},
]
RUN = """
import json, re, sys, time
import lynx_rt
from lynx_rt import _C
base = json.load(open(sys.argv[1] + "/config.json"))
for keys in json.load(open(sys.argv[2])):
    json.dump(base | keys, open(sys.argv[1] + "/config.json", "w"))
    for options in ({}, {"load_format": "dummy"}) if keys.get("num_attention_heads", 0) >> 20 else ({},):
        start = time.process_time()
        try:
            _C.Engine(sys.argv[1], num_threads=1, max_num_seqs=2, kv_cache_memory_bytes=1 << 24, **options).forward([1, 2, 3])
            said = "loads"
        except lynx_rt.LynxError as e:
            said = str(e)
        peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
        print(f"{time.process_time() - start:.2f} {peak} {said:.160}")
"""


def test_absurd_sizes(made, tmp_path):
    """An error within two seconds and without the memory that the sizes would take; a context that nobody uses costs nothing."""
    path = made("deepseek_v3", FAMILIES["deepseek_v3"])
    (tmp_path / "absurd.json").write_text(json.dumps(ABSURD))
    done = subprocess.run([sys.executable, "-c", RUN, path, tmp_path / "absurd.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert len(lines) == len(ABSURD) + 2
    for seconds, mebibytes, said in lines:
        assert float(seconds) < 2 and int(mebibytes) < 300, done.stdout
        assert (said == "loads") == (said == lines[-2][2]), done.stdout


# Tensors and layers


def test_base_model(made):
    """Saved without the head, by the class below it."""
    bare = {"tie_word_embeddings": True}
    for model_type in ("qwen3_moe", "ernie4_5_moe", "deepseek_v3"):
        keys = FAMILIES[model_type] | bare

        def rename(tensors):
            for name in list(tensors):
                tensors[name.removeprefix("model.")] = tensors.pop(name)

        np.testing.assert_array_equal(logits(made(model_type, keys, rename)), logits(made(model_type, keys)))
        with pytest.raises(CheckpointError, match=r'missing: "lm_head\.weight"'):
            engine(made(model_type, keys | {"tie_word_embeddings": False}, lambda t: (t.pop(HEAD), rename(t))))


NOT_OF_THE_MODEL = ["v_head.summary.weight", "v_head.summary.bias", "value_head.weight", "score.weight", "model.rotary_emb.inv_freq",
                    "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.cos_cached",
                    "model.layers.0.self_attn.masked_bias"]  # fmt: skip


def test_tensors_that_mean_nothing(made):
    path = made(tensors=lambda t: t.update({name: torch.ones(3) for name in NOT_OF_THE_MODEL}))
    np.testing.assert_array_equal(logits(path), logits(made()))
    for name in ("v_heads.weight", "model.scores.weight", "model.layers.0.self_attn.bias"):
        with pytest.raises(CheckpointError, match=f'1 unexpected: "{name}"'):
            engine(made(tensors=lambda t, name=name: t.update({name: torch.ones(3)})))


def test_fewer_layers_than_stored(made):
    path = made(keys=MOE | {"num_hidden_layers": 4}, config=lambda c: c.update(num_hidden_layers=2, layer_types=None))
    with pytest.warns(UserWarning, match="2 more layers than num_hidden_layers 2"):
        assert_as_transformers(path)


@pytest.mark.parametrize("edit", [
    lambda t: t.pop("model.layers.2.eh_proj.weight"),
    lambda t: t.update({"model.layers.2.eh_proj.weight": torch.ones(5)}),
    lambda t: t.update({"model.layers.2.eh_proj.qweight": torch.ones(5, dtype=torch.int32),
                        "model.layers.2.eh_proj.scales": torch.ones(5)}),
], ids=["without", "shape", "quantised"])  # fmt: skip
def test_mtp_layer(made, edit):
    """A layer that predicts further tokens is not run, and nobody is told, whatever is in it."""
    keys = FAMILIES["deepseek_v3"]
    path = made("deepseek_v3", keys, lambda t: (add_mtp_layer(2, t), edit(t)))
    np.testing.assert_array_equal(logits(path), logits(made("deepseek_v3", keys)))


@pytest.mark.parametrize("eos, kept", [(-1, []), (97, []), ([2, -1, 5, 1 << 40], [2, 5]), ([], []), (0, [0])], ids=str)
def test_ends_of_text_outside_the_vocabulary(made, eos, kept):
    assert engine(made(config=lambda c: c.update(eos_token_id=eos))).model_info()["eos_token_ids"] == kept


TOP_K = {"deepseek_v3": 8, "ernie4_5_moe": 6, "glm4_moe": 8, "gpt_oss": 4, "granitemoe": 2, "hunyuan_v1_moe": 1, "llama4_text": 1,
         "minimax_m2": 8, "mixtral": 2, "olmoe": 8, "phimoe": 2, "qwen2_moe": 4, "qwen3_moe": 8}  # fmt: skip


@pytest.mark.parametrize("model_type", TOP_K)
def test_experts_per_token_by_family(tmp_path, model_type):
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)
    k = next(
        k for key in ("num_experts_per_tok", "moe_k", "moe_topk") if isinstance(k := getattr(config, key, None), int)
    )
    assert k == TOP_K[model_type]
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64,
             "head_dim": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 8,
             "intermediate_size": 16, "moe_intermediate_size": 16, "intermediate_size_mlp": 16, "shared_expert_intermediate_size": 16,
             "first_k_dense_replace": 0, "moe_layer_start_index": 0, "num_experts": 16, "num_local_experts": 16, "n_routed_experts": 16,
             "moe_num_experts": 16, "attention_chunk_size": 16, "n_group": 1, "topk_group": 1, "rope_parameters": {"rope_type": "default",
             "rope_theta": 1e4}, "model_type": model_type}  # fmt: skip
    if model_type == "hunyuan_v1_moe":
        sizes.pop("moe_intermediate_size")
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    info = _C.Engine(str(tmp_path), load_format="dummy", num_threads=1, max_num_seqs=2).model_info()
    assert info["num_experts_per_tok"] == k and info["dtype"] == "float32"


def test_kimi_k2(made):
    keys = FAMILIES["deepseek_v3"]
    path = made("deepseek_v3", keys, config=lambda c: c.update(model_type="kimi_k2"))
    np.testing.assert_array_equal(logits(path), logits(made("deepseek_v3", keys)))
    assert engine(path).model_info()["model_type"] == "kimi_k2"


def test_shards_as_found(made):
    """In a folder below, with a tensor that the index does not name and one that it names in vain."""
    path = Path(made(sharded=True, tensors=None))
    index = json.loads((path / "model.safetensors.index.json").read_text())
    before = logits(str(path))
    moved = sorted(set(index["weight_map"].values()))[0]
    (path / "shards").mkdir()
    (path / moved).rename(path / "shards" / moved)
    named = {k: f"shards/{v}" if v == moved else v for k, v in index["weight_map"].items()}
    named.pop("model.norm.weight")
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = f"shards/{moved}"
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    np.testing.assert_array_equal(logits(str(path)), before)
    index["weight_map"].pop("model.norm.weight")
    for shard in sorted(set(named.values())):  # away with a tensor that is needed
        tensors = load_file(path / shard)
        if tensors.pop("model.norm.weight", None) is not None:
            save_file(tensors, path / shard)
    with pytest.raises(CheckpointError, match=r'1 missing: "model\.norm\.weight"'):
        engine(str(path))


@pytest.mark.parametrize("model_type, keys", [
    ("hunyuan_v1_moe", {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}),
    ("qwen3_moe", {"shared_expert_intermediate_size": 16}),
])  # fmt: skip
def test_keys_that_mean_nothing(made, model_type, keys):
    sizes = {"num_experts": 4, "moe_topk": 2, "head_dim": 12} if model_type == "hunyuan_v1_moe" else MOE
    assert _C.inspect(made(model_type, sizes, config=lambda c: c.update(keys)))["keys_not_understood"] == []
