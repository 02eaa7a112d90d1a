"""A tiny random model that reads images, with all the files that the Hub's have, and what transformers answers to chats with images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image
from tokenizers import decoders, models, pre_tokenizers, trainers

torch.set_num_threads(1)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
TEMPLATE = (  # Qwen3-VL's, as far as it concerns users' messages
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' or 'image' in p or 'image_url' in p %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in p %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROCESSOR: dict[str, Any] = {
    "size": {"shortest_edge": 2048, "longest_edge": 40_000},
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.5, 0.5, 0.5],  # as the Hub's files of Qwen3-VL have them
    "image_std": [0.5, 0.5, 0.5],
}
MAX_NEW = 24
CORPUS = ["What is the weather in Paris today? It is 21 degrees; the sky is clear.", "The dog does not mind."] * 4
NUM_WORDS = 300  # tokens that are no special ones; answers are of these
GREEDY = {"temperature": 0, "max_tokens": MAX_NEW, "allowed_token_ids": list(range(NUM_WORDS))}
VISION = {"depth": 3, "hidden_size": 48, "intermediate_size": 56, "num_heads": 4, "patch_size": 16, "spatial_merge_size": 2,
          "temporal_patch_size": 2, "out_hidden_size": 48, "num_position_embeddings": 64, "in_channels": 3,
          "deepstack_visual_indexes": [0, 1]}  # fmt: skip
TEXT = {"hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "max_position_embeddings": 2048,
        "mlp_only_layers": [], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2],
        "mrope_interleaved": True}}  # fmt: skip


def write_model(path: Path) -> None:
    """Writes a random qwen3_vl_moe with tokenizer, chat template and image processor, as the Hub's are."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=NUM_WORDS, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    assert backend.get_vocab_size() == NUM_WORDS
    backend.add_special_tokens(SPECIAL)
    backend.save(str(path / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    processor = {"image_processor_type": "Qwen2VLImageProcessor", **PROCESSOR}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    ids = {name: backend.token_to_id(token) for name, token in (
        ("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>"), ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"))}  # fmt: skip
    text = TEXT | {
        "vocab_size": backend.get_vocab_size(),
        "bos_token_id": None,
        "eos_token_id": backend.token_to_id("<|im_end|>"),
    }
    torch.manual_seed(7)
    model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=VISION, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.dim() > 1 else 0.5)
    model.save_pretrained(path)


def picture(seed: int, height: int, width: int) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8))
    return coarse.resize((width, height))


PICTURES = [picture(1, 90, 130), picture(2, 200, 64), picture(3, 400, 300)]


def chat(*parts: Any) -> list[dict[str, Any]]:
    each = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return [{"role": "user", "content": each}]


CHATS = [
    chat("What is the weather in Paris today?"),
    chat(PICTURES[0], "What is this?"),
    chat("The first", PICTURES[1], " and the second", PICTURES[2], "and the dog does not mind."),
    chat(PICTURES[2], PICTURES[2], PICTURES[0]),
    [*chat(PICTURES[1], "one"), {"role": "assistant", "content": "Rain."}, *chat("two", PICTURES[0])],
]


def answers(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Returns prompt and greedy tokens of each of CHATS, by transformers and its own image processor."""
    from transformers import PreTrainedTokenizerFast, Qwen3VLMoeForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    processor = Qwen2VLImageProcessorPil(**PROCESSOR)
    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for messages in CHATS:
        text = tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
        )
        parts = [part for message in messages for part in message["content"] if isinstance(part, dict)]
        images = [part["image"] for part in parts if "image" in part]
        inputs: dict[str, Any] = {}
        if images:
            made_patches = processor(images, return_tensors="pt")
            inputs = {"pixel_values": made_patches["pixel_values"], "image_grid_thw": made_patches["image_grid_thw"]}
            for grid in inputs["image_grid_thw"].tolist():
                text = text.replace("<|image_pad|>", "<|hole|>" * (grid[1] * grid[2] // 4), 1)
            text = text.replace("<|hole|>", "<|image_pad|>")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = list(ids)
        for _ in range(MAX_NEW):  # without a cache, so that all positions are computed anew
            tokens = torch.tensor([ids])
            if images:
                inputs["mm_token_type_ids"] = (tokens == model.config.image_token_id).int()
            model.model.rope_deltas = None
            with torch.no_grad():
                logits = model(input_ids=tokens, use_cache=False, **inputs).logits[0, -1]
            ids.append(int(logits[:NUM_WORDS].argmax()))
        found.append((prompt, ids[len(prompt) :]))
    return found
