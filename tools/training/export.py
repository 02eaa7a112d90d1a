"""Writes a trained model in Hugging Face format: qwen3_moe, qwen3 without experts, qwen3_next for a hybrid.

    python export.py --ckpt run/e8/ckpt.pt --tokenizer models/lynx-nano --out models/lynx-nano-e8

tests/python/test_training.py compares the result with transformers' classes.
"""

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file


def common_config(c):
    config = {
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": c.eps,
        "use_cache": True,
        "tie_word_embeddings": True,
        "rope_theta": c.theta,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if not c.experts:
        return config | {"intermediate_size": c.inter}
    return config | {
        "num_experts": c.experts,
        "num_experts_per_tok": c.topk,
        "moe_intermediate_size": c.inter,
        "intermediate_size": c.inter * c.topk,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def transformer_config(c):
    name, kind = ("Qwen3Moe", "qwen3_moe") if c.experts else ("Qwen3", "qwen3")
    return common_config(c) | {"architectures": [name + "ForCausalLM"], "model_type": kind}


def hybrid_config(c):
    return common_config(c) | {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "partial_rotary_factor": c.rotary,
        "full_attention_interval": c.interval,
        "linear_num_key_heads": c.key_heads,
        "linear_num_value_heads": c.value_heads,
        "linear_key_head_dim": c.key_dim,
        "linear_value_head_dim": c.value_dim,
        "linear_conv_kernel_dim": c.conv,
        "shared_expert_intermediate_size": c.shared,
    }


def experts(p, w1, w2, out):
    width = w1.shape[1] // 2
    for e in range(w1.shape[0]):
        x = f"{p}mlp.experts.{e}."
        out[x + "gate_proj.weight"], out[x + "up_proj.weight"] = w1[e, :width], w1[e, width:]
        out[x + "down_proj.weight"] = w2[e]


def attention(p, s, sd, c, out):
    query, key = c.heads * c.head_dim, c.kv_heads * c.head_dim
    parts = sd[s + "wqkv"].split([query, key, key])
    out.update(zip((f"{p}self_attn.{n}_proj.weight" for n in "qkv"), parts, strict=True))
    out[p + "self_attn.o_proj.weight"] = sd[s + "wo"]


def transformer_tensors(sd, c, prefix="model.", add_experts=experts):
    o = {prefix + "embed_tokens.weight": sd["emb"], prefix + "norm.weight": sd["nf"]}
    for i in range(c.layers):
        s, p = f"layers.{i}.", f"{prefix}layers.{i}."
        o[p + "input_layernorm.weight"], o[p + "post_attention_layernorm.weight"] = sd[s + "n1"], sd[s + "n2"]
        o[p + "self_attn.q_norm.weight"], o[p + "self_attn.k_norm.weight"] = sd[s + "qn"], sd[s + "kn"]
        attention(p, s, sd, c, o)
        if c.experts:
            o[p + "mlp.gate.weight"] = sd[s + "wr"]
            add_experts(p, sd[s + "w1"], sd[s + "w2"], o)
        else:
            o[p + "mlp.gate_proj.weight"], o[p + "mlp.up_proj.weight"] = sd[s + "w1"].split(c.inter)
            o[p + "mlp.down_proj.weight"] = sd[s + "w2"]
    return o


def hybrid_tensors(sd, c):
    """Norms are stored as w - 1, but for the one after the delta rule. Rows of in_proj are ordered by key head."""
    o = {"model.embed_tokens.weight": sd["emb"], "model.norm.weight": sd["nf"] - 1}
    for i in range(c.layers):
        s, p = f"layers.{i}.", f"model.layers.{i}."
        o[p + "input_layernorm.weight"], o[p + "post_attention_layernorm.weight"] = sd[s + "n1"] - 1, sd[s + "n2"] - 1
        if c.attends(i):
            query, key, d = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.head_dim
            q, gate, k, v = sd[s + "wqkv"].split([query, query, key, key])
            q = torch.stack([q.view(c.heads, d, -1), gate.view(c.heads, d, -1)], 1).reshape(2 * query, -1)
            o[p + "self_attn.q_proj.weight"], o[p + "self_attn.k_proj.weight"], o[p + "self_attn.v_proj.weight"] = (
                q,
                k,
                v,
            )
            o[p + "self_attn.o_proj.weight"] = sd[s + "wo"]
            o[p + "self_attn.q_norm.weight"], o[p + "self_attn.k_norm.weight"] = sd[s + "qn"] - 1, sd[s + "kn"] - 1
        else:
            x, keys, values = p + "linear_attn.", c.key_heads * c.key_dim, c.value_heads * c.value_dim
            by_head = lambda t: t.view(c.key_heads, -1, t.shape[-1])
            q, k, v, z = sd[s + "wqkvz"].split([keys, keys, values, values])
            o[x + "in_proj_qkvz.weight"] = torch.cat([by_head(t) for t in (q, k, v, z)], 1).flatten(0, 1)
            b, a = sd[s + "wba"].split([c.value_heads] * 2)
            o[x + "in_proj_ba.weight"] = torch.cat([by_head(b), by_head(a)], 1).flatten(0, 1)
            o[x + "conv1d.weight"] = sd[s + "conv"][:, None]
            o[x + "A_log"], o[x + "dt_bias"], o[x + "norm.weight"] = sd[s + "a_log"], sd[s + "dt"], sd[s + "on"]
            o[x + "out_proj.weight"] = sd[s + "wo"]
        o[p + "mlp.gate.weight"] = sd[s + "wr"]
        experts(p, sd[s + "w1"], sd[s + "w2"], o)
        x = p + "mlp.shared_expert."
        o[x + "gate_proj.weight"], o[x + "up_proj.weight"] = sd[s + "s1"].split([c.shared] * 2)
        o[x + "down_proj.weight"] = sd[s + "s2"]
        o[p + "mlp.shared_expert_gate.weight"] = sd[s + "sg"][None]
    return o


def write(tensors, config, out, tokenizer, dtype):
    os.makedirs(out, exist_ok=True)
    values = {k: v.detach().to(dtype).clone().contiguous() for k, v in tensors.items()}
    save_file(values, f"{out}/model.safetensors", metadata={"format": "pt"})
    config["torch_dtype"] = "bfloat16" if dtype == torch.bfloat16 else "float32"
    for name, value in (
        ("config.json", dict(sorted(config.items()))),
        ("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False}),
    ):
        with open(f"{out}/{name}", "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if tokenizer and os.path.exists(f"{tokenizer}/{name}"):
            shutil.copy(f"{tokenizer}/{name}", out)


def export(checkpoint, out, tokenizer, dtype=torch.bfloat16):
    from hybrid import HybridConfig
    from model import Config

    sd = checkpoint["model"]
    if checkpoint["hybrid"]:
        c = HybridConfig(**checkpoint["config"])
        write(hybrid_tensors(sd, c), hybrid_config(c), out, tokenizer, dtype)
    else:
        c = Config(**checkpoint["config"])
        write(transformer_tensors(sd, c), transformer_config(c), out, tokenizer, dtype)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    export(torch.load(options.ckpt, weights_only=False), options.out, options.tokenizer)
