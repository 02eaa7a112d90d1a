"""Writes tiny random Qwen3 and Qwen3-MoE checkpoints with transformers: the models of the parity and engine tests.

Every config differs from the next in several ways at once (grouping of heads, head size, experts per token, dense layers,
layout and key names on disk, dtype of the weights, shards), so that a dozen configs cover each way more than once.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

torch.set_num_threads(1)  # the matrices are tiny: further threads only wait for each other


@dataclass(frozen=True)
class Tiny:
    """One checkpoint: what its model looks like, and how it lies on disk."""

    name: str
    heads: tuple[int, int, int]  # query heads, key/value heads, head size
    hidden: int
    vocab: int
    experts: tuple[int, int, int] | None = None  # E, k, I; None = a dense model
    layers: int = 2
    dense_width: int = 56
    tied: bool = False
    norm_topk: bool = True
    bias: bool = False
    theta: float = 10000.0
    sparse_step: int = 1
    mlp_only: tuple[int, ...] = ()
    dtype: str = "float32"
    fused: bool = False  # experts as one tensor per layer, as transformers 5 holds them
    legacy_keys: bool = False  # config.json as transformers 4 wrote it
    sharded: bool = False
    spread: float = 0.3  # standard deviation of the weights: large, so that logits have real margins
    extra: dict[str, Any] = field(default_factory=dict)


# fmt: off
MOE = [
    Tiny("plain",       (4, 2, 16), 48, 101, (8, 2, 24)),
    Tiny("head_dim",    (3, 1, 26), 32,  77, (8, 1, 17), legacy_keys=True, tied=True),
    Tiny("no_groups",   (2, 2, 24), 96, 131, (8, 8, 16), norm_topk=False, fused=True),
    Tiny("groups3",     (6, 2, 10), 80, 113, (12, 3, 33), bias=True, sharded=True),
    Tiny("mixed",       (4, 4, 12), 48,  97, (8, 4, 20), layers=4, mlp_only=(1,), sparse_step=1, legacy_keys=True, norm_topk=False),
    Tiny("sparse_step", (4, 1, 20), 64,  89, (9, 5, 12), layers=5, sparse_step=2, mlp_only=(3,), fused=True, tied=True),
    Tiny("theta",       (2, 1, 32), 64, 127, (16, 7, 11), theta=1e6, legacy_keys=True, sharded=True, bias=True),
    Tiny("bf16",        (4, 2, 16), 48, 103, (8, 2, 32), dtype="bfloat16"),
    Tiny("bf16_fused",  (6, 2, 14), 80,  91, (10, 3, 15), dtype="bfloat16", fused=True, tied=True, norm_topk=False),
    Tiny("bf16_legacy", (3, 3, 18), 96, 119, (8, 6, 21), dtype="bfloat16", legacy_keys=True, bias=True, layers=3, mlp_only=(0,)),
    Tiny("f16",         (4, 2, 16), 48, 107, (8, 3, 40), dtype="float16", sharded=True),
    Tiny("f16_fused",   (2, 1, 22), 32,  83, (11, 2, 9), dtype="float16", fused=True, tied=True),
    Tiny("many",        (4, 2, 8),  32,  71, (64, 8, 5), dtype="bfloat16", norm_topk=True),
    Tiny("one_layer",   (1, 1, 2),  33,  64, (1, 1, 7), layers=1),
]
DENSE = [
    Tiny("dense",       (4, 2, 16), 48, 101, bias=True),
    Tiny("dense_tied",  (3, 1, 14), 80,  95, tied=True, dtype="bfloat16", legacy_keys=True, layers=3),
    Tiny("dense_f16",   (2, 2, 30), 32,  67, dtype="float16", sharded=True, dense_width=77),
]
# fmt: on
ALL = {t.name: t for t in MOE + DENSE}
CONTEXT = 256  # max_position_embeddings


def _config(t: Tiny) -> Qwen3Config | Qwen3MoeConfig:
    heads, kv_heads, head_dim = t.heads
    common = dict(
        hidden_size=t.hidden, num_hidden_layers=t.layers, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        intermediate_size=t.dense_width, vocab_size=t.vocab, max_position_embeddings=CONTEXT, tie_word_embeddings=t.tied,
        attention_bias=t.bias, rope_parameters={"rope_type": "default", "rope_theta": t.theta}, bos_token_id=None, eos_token_id=2,
        pad_token_id=None, rms_norm_eps=1e-6, **t.extra,
    )  # fmt: skip
    if t.experts is None:
        return Qwen3Config(**common)
    experts, k, width = t.experts
    return Qwen3MoeConfig(
        num_experts=experts, num_experts_per_tok=k, moe_intermediate_size=width, norm_topk_prob=t.norm_topk,
        decoder_sparse_step=t.sparse_step, mlp_only_layers=list(t.mlp_only), **common,
    )  # fmt: skip


def _fill(model: torch.nn.Module, t: Tiny) -> None:
    """Every parameter at random, also the ones that transformers starts at 1 and 0 and that would hide a mistake."""
    generator = torch.Generator().manual_seed(zlib.crc32(t.name.encode()))
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data.copy_(1 + 0.2 * noise if "norm" in name else t.spread * noise)


def _to_legacy(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of transformers 4: num_experts, rope_theta, torch_dtype."""
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    return config


def write(t: Tiny, folder: Path) -> str:
    """Writes the checkpoint and returns its folder."""
    config = _config(t)
    cls = Qwen3ForCausalLM if t.experts is None else Qwen3MoeForCausalLM
    model = cls(config).eval()
    _fill(model, t)
    model.to(getattr(torch, t.dtype)).save_pretrained(
        folder, save_original_format=not t.fused, max_shard_size="40kB" if t.sharded else "1GB"
    )
    if t.legacy_keys:
        path = folder / "config.json"
        path.write_text(json.dumps(_to_legacy(json.loads(path.read_text()))))
    return str(folder)


def reference(path: str, dtype: str, cls: Any = AutoModelForCausalLM) -> torch.nn.Module:
    """The checkpoint in transformers, eager attention. A 16-bit checkpoint in float32 is an exact conversion."""
    model = cls.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.eval()


@torch.no_grad()
def reference_logits(model: torch.nn.Module, ids: list[int]) -> Any:
    """Logits [tokens, vocabulary] as a float32 array."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
