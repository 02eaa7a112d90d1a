"""Writes a Qwen3-MoE checkpoint as GGUF files for llama.cpp, to measure its speed.

    python bench/peers/to_gguf.py MODEL OUT_DIR [--types bf16,q8_0,q4_0] [--llama-cpp BUILD_DIR]

Needs numpy and PyPI's `gguf`; quantized types also need llama-quantize of a llama.cpp build. The weights keep their bits; norms and
routers become float32, as in llama.cpp's own converter. Quantized files are "pure": every matrix but the routers has the same type.
The vocabulary is a dummy one, in which token 7 is written <7>.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LAYER = {  # GGUF's name: the checkpoint's name
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
}
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}


def read_tensors(model: Path) -> dict[str, np.ndarray]:
    """Returns all tensors by name, mapped; bfloat16 as its bits in uint16."""
    tensors = {}
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (length,) = struct.unpack_from("<Q", data)
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{name} is {entry['dtype']}; only bfloat16 checkpoints are converted")
            start, end = entry["data_offsets"]
            flat = np.frombuffer(data, np.uint16, (end - start) // 2, 8 + length + start)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def write_bf16(model: Path, out: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "qwen3_moe" or config["mlp_only_layers"] or config["decoder_sparse_step"] != 1:
        raise SystemExit("only Qwen3-MoE with experts in every layer is converted")
    tensors = read_tensors(model)
    writer = gguf.GGUFWriter(out, "qwen3moe")
    write_header(writer, model.name, config)

    def add(name: str, bits: np.ndarray) -> None:
        if bits.ndim == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(f"{name}.weight", (bits.astype(np.uint32) << 16).view(np.float32))
        else:  # raw_shape is in bytes
            raw = bits.view(np.uint8)
            writer.add_tensor(f"{name}.weight", raw, raw.shape, gguf.GGMLQuantizationType.BF16)

    add("token_embd", tensors["model.embed_tokens.weight"])
    add("output_norm", tensors["model.norm.weight"])
    if not config["tie_word_embeddings"]:
        add("output", tensors["lm_head.weight"])
    for layer in range(config["num_hidden_layers"]):
        source = f"model.layers.{layer}"
        for name, part in LAYER.items():
            add(f"blk.{layer}.{name}", tensors[f"{source}.{part}.weight"])
        for name, part in EXPERTS.items():
            experts = range(config["num_experts"])
            add(f"blk.{layer}.{name}", np.stack([tensors[f"{source}.mlp.experts.{e}.{part}.weight"] for e in experts]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_header(writer: gguf.GGUFWriter, name: str, config: dict[str, Any]) -> None:
    if config.get("rope_scaling") or not config["norm_topk_prob"]:
        raise SystemExit("rope_scaling, or weights of the experts that do not sum to 1: not converted")
    writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    size = config["vocab_size"]
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([gguf.TokenType.USER_DEFINED] * size)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("out", metavar="OUT_DIR", type=Path)
    parser.add_argument("--types", default="bf16", help="bf16, and what llama-quantize knows (default: bf16)")
    parser.add_argument(
        "--llama-cpp", type=Path, default=os.environ.get("LYNX_RT_PEER_LLAMA_CPP"), help="build of llama.cpp"
    )
    args = parser.parse_args(argv)
    types = args.types.lower().split(",")
    args.out.mkdir(parents=True, exist_ok=True)
    bf16 = args.out / "bf16.gguf"
    write_bf16(args.model, bf16)
    for name in types:
        path = args.out / f"{name}.gguf"
        if name != "bf16":
            if args.llama_cpp is None:
                parser.error("quantized types need --llama-cpp")
            command = [args.llama_cpp / "bin" / "llama-quantize", "--pure", bf16, path, name.upper()]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(f"{path}: {path.stat().st_size / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
