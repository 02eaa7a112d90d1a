"""Measures time to ready and memory of a checkpoint of about 2 GB, for three families and formats, with made-up weights.

    python bench/loading.py [mixtral] [deepseek_v3] [gpt_oss] [--quantization none,int8] [--folder DIR]

mixtral: bf16, a tensor per expert, used in place. deepseek_v3: FP8 with blocks of 128 x 128, and gpt_oss: MXFP4, both decoded to bf16 as
they are loaded. A process of its own loads each checkpoint once, with the file in the page cache; the numbers are that process's.
`ready` is the time of Engine(). `first tokens` is the time of one request of 16 prompt tokens and 4 new ones, which reads every dense
weight for the first time. `anonymous` is the largest resident memory that is not the file's, before and after those tokens (a KV cache is
not counted until it is used).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, HEADS, VOCAB = 2048, 16, 32000
SHARED = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "vocab_size": VOCAB, "max_position_embeddings": 4096, "dtype": "bfloat16",
          "eos_token_id": 2, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False}  # fmt: skip


class Tensors:
    """Collects tensors by name: float32 (stored as bf16), or raw bytes of a dtype."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.noise = (self.random.standard_normal(1 << 20) * 0.02).astype(np.float32)
        self.noise_bits = (self.noise.view(np.uint32) >> 16).astype(np.uint16)
        self.all: dict[str, tuple[str, tuple[int, ...], np.ndarray]] = {}

    def bf16(self, name: str, *shape: int, value: float | None = None) -> None:
        count = int(np.prod(shape))
        bits = self.noise_bits if value is None else np.array([np.float32(value).view(np.uint32) >> 16], np.uint16)
        self.all[name] = ("BF16", shape, np.resize(bits, count))

    def raw(self, name: str, dtype: str, values: np.ndarray) -> None:
        self.all[name] = (dtype, values.shape, values)

    def fp8(self, name: str, rows: int, cols: int) -> None:
        """Returns random bytes other than the two that are NaN (0x7f, 0xff)."""
        self.raw(name, "F8_E4M3", np.resize(self.random.integers(0, 0x7F, 1 << 20, np.uint8), (rows, cols)))
        self.raw(name + "_scale_inv", "F32", np.full((-(-rows // 128), -(-cols // 128)), 1e-3, np.float32))

    def write(self, path: Path) -> int:
        """Writes one safetensors file, tensor after tensor; returns its bytes."""
        header, offset = {}, 0
        for name, (dtype, shape, values) in self.all.items():
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + values.nbytes]}
            offset += values.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, _, values in self.all.values():
                file.write(values.tobytes())
        return offset

    def shared(self, layers: int) -> None:
        self.bf16("model.embed_tokens.weight", VOCAB, HIDDEN)
        self.bf16("lm_head.weight", VOCAB, HIDDEN)
        self.bf16("model.norm.weight", HIDDEN, value=1)
        for layer in range(layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self.bf16(f"model.layers.{layer}.{norm}.weight", HIDDEN, value=1)


def mixtral(t: Tensors) -> dict[str, Any]:
    layers, experts, width, kv = 6, 8, 3072, 512
    t.shared(layers)
    for layer in range(layers):
        attention, moe = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.block_sparse_moe."
        for name, rows, cols in (("q", HIDDEN, HIDDEN), ("k", kv, HIDDEN), ("v", kv, HIDDEN), ("o", HIDDEN, HIDDEN)):
            t.bf16(f"{attention}{name}_proj.weight", rows, cols)
        t.bf16(moe + "gate.weight", experts, HIDDEN)
        for e in range(experts):
            for name, rows, cols in (("w1", width, HIDDEN), ("w3", width, HIDDEN), ("w2", HIDDEN, width)):
                t.bf16(f"{moe}experts.{e}.{name}.weight", rows, cols)
    return SHARED | {"model_type": "mixtral", "num_hidden_layers": layers, "num_key_value_heads": 4, "intermediate_size": width,
                     "num_local_experts": experts, "num_experts_per_tok": 2, "rope_theta": 1e6}  # fmt: skip


def deepseek_v3(t: Tensors) -> dict[str, Any]:
    layers, experts, width, dense, q_rank, kv_rank, nope, rope, v = 9, 32, 1024, 4096, 768, 512, 128, 64, 128
    t.shared(layers)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        t.fp8(attention + "q_a_proj.weight", q_rank, HIDDEN)
        t.bf16(attention + "q_a_layernorm.weight", q_rank, value=1)
        t.fp8(attention + "q_b_proj.weight", HEADS * (nope + rope), q_rank)
        t.fp8(attention + "kv_a_proj_with_mqa.weight", kv_rank + rope, HIDDEN)
        t.bf16(attention + "kv_a_layernorm.weight", kv_rank, value=1)
        t.fp8(attention + "kv_b_proj.weight", HEADS * (nope + v), kv_rank)
        t.fp8(attention + "o_proj.weight", HIDDEN, HEADS * v)
        if layer == 0:
            mlps = [(mlp, dense)]
        else:
            t.bf16(mlp + "gate.weight", experts, HIDDEN)
            t.raw(mlp + "gate.e_score_correction_bias", "F32", np.zeros(experts, np.float32))
            mlps = [(f"{mlp}experts.{e}.", width) for e in range(experts)] + [(mlp + "shared_experts.", width)]
        for name, size in mlps:
            t.fp8(name + "gate_proj.weight", size, HIDDEN)
            t.fp8(name + "up_proj.weight", size, HIDDEN)
            t.fp8(name + "down_proj.weight", HIDDEN, size)
    return SHARED | {"model_type": "deepseek_v3", "num_hidden_layers": layers, "intermediate_size": dense, "moe_intermediate_size": width,
                     "n_routed_experts": experts, "num_experts_per_tok": 4, "n_shared_experts": 1, "n_group": 4, "topk_group": 2,
                     "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
                     "topk_method": "noaux_tc", "q_lora_rank": q_rank, "kv_lora_rank": kv_rank, "qk_nope_head_dim": nope,
                     "qk_rope_head_dim": rope, "v_head_dim": v, "num_key_value_heads": HEADS, "rope_theta": 1e4,
                     "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                             "weight_block_size": [128, 128]}}  # fmt: skip


def gpt_oss(t: Tensors) -> dict[str, Any]:
    layers, experts, width, head, kv = 8, 32, 2048, 64, 8
    t.shared(layers)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        attention, experts_at = prefix + "self_attn.", prefix + "mlp.experts."
        for name, rows, cols in (
            ("q", 32 * head, HIDDEN),
            ("k", kv * head, HIDDEN),
            ("v", kv * head, HIDDEN),
            ("o", HIDDEN, 32 * head),
        ):
            t.bf16(f"{attention}{name}_proj.weight", rows, cols)
            t.bf16(f"{attention}{name}_proj.bias", rows)
        t.bf16(attention + "sinks", 32)
        t.bf16(prefix + "mlp.router.weight", experts, HIDDEN)
        t.bf16(prefix + "mlp.router.bias", experts)
        for name, rows, cols in (("gate_up_proj", 2 * width, HIDDEN), ("down_proj", HIDDEN, width)):
            blocks = np.resize(t.random.integers(0, 256, 1 << 20, np.uint8), (experts, rows, cols // 32, 16))
            t.raw(f"{experts_at}{name}_blocks", "U8", blocks)
            t.raw(f"{experts_at}{name}_scales", "U8", np.full((experts, rows, cols // 32), 120, np.uint8))
            t.bf16(f"{experts_at}{name}_bias", experts, rows)
    return SHARED | {"model_type": "gpt_oss", "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": kv,
                     "head_dim": head, "intermediate_size": width, "num_local_experts": experts, "num_experts_per_tok": 4,
                     "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * (layers // 2), "rope_theta": 150000.0,
                     "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                                      "original_max_position_embeddings": 4096}, "max_position_embeddings": 131072,
                     "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert":
                                             ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}}  # fmt: skip


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def load(folder: str, quantization: str) -> None:
    import lynx_rt
    from lynx_rt.cli.machine import measured_on

    start, before = time.perf_counter(), anonymous_bytes()
    with lynx_rt.Engine(
        folder, skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=1, quantization=quantization
    ) as engine:
        ready, loaded = time.perf_counter() - start, anonymous_bytes()
        start = time.perf_counter()
        params = lynx_rt.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
        engine.generate([{"prompt_token_ids": list(range(16))}], params, use_tqdm=False)
        tokens = time.perf_counter() - start
        peak = next(
            int(x.split()[1]) << 10 for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")
        )
        print(json.dumps({"ready_s": ready, "tokens_s": tokens, "anonymous": loaded - before, "after": anonymous_bytes() - before,
                          "peak": peak, "weights": engine.memory["weight"], "machine": measured_on(engine.device)}))  # fmt: skip


def main() -> int:
    families = {f.__name__: f for f in (mixtral, deepseek_v3, gpt_oss)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="of " + ", ".join(families))
    parser.add_argument("--folder", help="where checkpoints are kept; default: a temporary folder")
    parser.add_argument("--quantization", default="none", help="of the engine; several are loaded one after the other")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.families) - families.keys():
        parser.error(f"expected families of {', '.join(families)}, got {', '.join(unknown)}")
    if args.load:
        load(args.load, args.quantization)
        return 0
    columns = "| checkpoint | quantization | file GB | weights GB | ready s | first tokens s | anonymous GB, ready | after tokens | peak resident GB |"
    columns += "\n|---|---|---|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.families or families:
            folder = Path(args.folder or temporary) / name
            if not (folder / "config.json").exists():
                folder.mkdir(parents=True)
                tensors = Tensors()
                config = families[name](tensors)
                tensors.write(folder / "model.safetensors")
                (folder / "config.json").write_text(json.dumps(config))
                del tensors
            size = (folder / "model.safetensors").stat().st_size
            with (folder / "model.safetensors").open("rb") as file:  # reads the file into the page cache
                while file.read(1 << 24):
                    pass
            for quantization in args.quantization.split(","):
                command = [sys.executable, __file__, "--load", str(folder), "--quantization", quantization]
                r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                if columns:
                    print(f"{r['machine']}\n\n{columns}")
                    columns = ""
                times = f"{r['ready_s']:.2f} | {r['tokens_s']:.2f}"
                sizes = " | ".join(f"{v / 1e9:.2f}" for v in (r["anonymous"], r["after"], r["peak"]))
                print(
                    f"| {name} | {quantization} | {size / 1e9:.2f} | {r['weights'] / 1e9:.2f} | {times} | {sizes} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
