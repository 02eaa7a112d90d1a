"""Writes the vision model in Hugging Face format: qwen3_vl_moe, or qwen3_vl for a dense one, with tokenizer, image processor and chat template.

    python export_vision.py --ckpt run/vision/ckpt.pt --tokenizer models/lynx-nano --out models/lynx-nano-vision

tests/python/test_training_vision.py compares the result with transformers' classes.
"""

import argparse
import json

import torch
from export import common_config, transformer_tensors, write
from model import Config
from vision import END, IMAGE, PAD, SECTION, START, TEXT, TowerConfig

# Pictures stand before the question, as in training, wherever the message has them.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A: ' + m['content'] + eos_token }}{% else %}"
    "{% if m['content'] is string %}{{ 'Q: ' + m['content'] + '\\n' }}{% else %}"
    "{% for p in m['content'] if p['type'] in ('image', 'image_url') %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}"
    "{{ 'Q: ' }}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}{{ '\\n' }}"
    "{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)


def config_of(text, tower):
    """Returns config.json of a model with this text part and tower."""
    kind, name = ("qwen3_vl_moe", "Qwen3VLMoe") if text.experts else ("qwen3_vl", "Qwen3VL")
    words = common_config(text) | {"model_type": kind + "_text"}
    theta = words.pop("rope_theta")
    words["rope_scaling"] = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": list(SECTION)}
    words["rope_theta"] = theta
    return {
        "architectures": [name + "ForConditionalGeneration"],
        "model_type": kind,
        "tie_word_embeddings": True,
        "vision_start_token_id": START,
        "image_token_id": PAD,
        "vision_end_token_id": END,
        "video_token_id": -1,
        "text_config": words,
        "vision_config": {
            "model_type": kind,
            "depth": tower.depth,
            "hidden_size": tower.hidden,
            "intermediate_size": tower.inter,
            "num_heads": tower.heads,
            "in_channels": 3,
            "patch_size": IMAGE.patch_size,
            "temporal_patch_size": IMAGE.temporal_patch_size,
            "spatial_merge_size": tower.merge,
            "num_position_embeddings": tower.side**2,
            "out_hidden_size": tower.out,
            "hidden_act": "gelu_pytorch_tanh",
            "deepstack_visual_indexes": list(tower.deepstack),
        },
    }


def fused_experts(p, w1, w2, out):
    out[p + "mlp.experts.gate_up_proj"], out[p + "mlp.experts.down_proj"] = w1.mT, w2.mT


def tensors_of(sd, text, tower):
    """Returns the tensors by their names on the Hub, where experts are fused and transposed."""
    sight = "model.visual."
    o = transformer_tensors(sd, text, "model.language_model.", fused_experts)

    def linear(name, source):
        o[f"{sight}{name}.weight"], o[f"{sight}{name}.bias"] = sd[source + ".weight"], sd[source + ".bias"]

    linear("patch_embed.proj", "tower.patch_embed")
    kernel = (tower.hidden, 3, IMAGE.temporal_patch_size, IMAGE.patch_size, IMAGE.patch_size)
    o[sight + "patch_embed.proj.weight"] = o[sight + "patch_embed.proj.weight"].view(kernel)
    o[sight + "pos_embed.weight"] = sd["tower.pos"]
    block = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "qkv", "attn.proj": "proj"}
    fc = {"linear_fc1": "fc1", "linear_fc2": "fc2"}
    for i in range(tower.depth):
        for name, source in (block | {f"mlp.{n}": s for n, s in fc.items()}).items():
            linear(f"blocks.{i}.{name}", f"tower.blocks.{i}.{source}")
    mergers = {"merger": "merger"} | {f"deepstack_merger_list.{j}": f"deep.{j}" for j in range(len(tower.deepstack))}
    for merger, place in mergers.items():
        for name, source in ({"norm": "norm"} | fc).items():
            linear(f"{merger}.{name}", f"tower.{place}.{source}")
    return o


def write_processing(out):
    """Adds the three tokens to the tokenizer that `out` has; writes the chat template and the image processor."""

    def change(name, edit):
        with open(f"{out}/{name}", encoding="utf-8") as file:
            values = json.load(file)
        edit(values)
        with open(f"{out}/{name}", "w", encoding="utf-8") as file:
            json.dump(values, file, indent=None if name == "tokenizer.json" else 1, ensure_ascii=False)

    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    names = {START: "<|vision_start|>", PAD: "<|image_pad|>", END: "<|vision_end|>"}
    change(
        "tokenizer.json", lambda v: v["added_tokens"].extend({"id": i, "content": n} | flags for i, n in names.items())
    )
    change("tokenizer_config.json", lambda v: v.update(chat_template=TEMPLATE))
    values = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": IMAGE.min_pixels, "longest_edge": IMAGE.max_pixels},
        "patch_size": IMAGE.patch_size,
        "temporal_patch_size": IMAGE.temporal_patch_size,
        "merge_size": IMAGE.merge_size,
        "image_mean": IMAGE.mean,
        "image_std": IMAGE.std,
    }
    with open(f"{out}/preprocessor_config.json", "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)


def export(state, out, tokenizer, dtype=torch.bfloat16, text=TEXT, tower=TowerConfig):
    """Writes a model's state dict; `tokenizer`: folder of lynx-nano, None for weights and config alone."""
    write(tensors_of(state, text, tower), config_of(text, tower), out, tokenizer, dtype)
    if tokenizer:
        write_processing(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    checkpoint = torch.load(options.ckpt, weights_only=False)
    export(checkpoint["model"], options.out, options.tokenizer, text=Config(**checkpoint["config"]))
