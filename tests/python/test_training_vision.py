"""The vision models that tools/training trains and exports compute what transformers' classes compute from the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The arithmetic of training is in float32 here, so that no choice of experts depends on the rounding to bfloat16.
CODE = """
import sys
import numpy as np
import torch
import model
model.BF = torch.float32
import vision, export_vision
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLMoeForConditionalGeneration

torch.manual_seed(3)
words = model.Config(vocab=4099, hidden=64, layers=4, heads=2, kv_heads=1, head_dim=64, experts=int(sys.argv[3]), topk=2, inter=24)
tower = vision.TowerConfig(depth=3, hidden=48, heads=2, inter=80, side=6, out=64, deepstack=(0, 1))
trained = vision.VisionLM(words, tower)
for name, values in trained.named_parameters():
    values.data += 0.1 * torch.randn_like(values)
export_vision.export(trained.state_dict(), sys.argv[1], sys.argv[2], torch.float32, words, tower)
stock = Qwen3VLMoeForConditionalGeneration if words.experts else Qwen3VLForConditionalGeneration
theirs = stock.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
samples = vision.Samples(sys.argv[2], 5, 96)
vision.TowerConfig.patch = tower.patch


class Logits:
    @staticmethod
    def apply(rows, embeddings, *_):
        return rows @ embeddings.T, None


vision.HeadLoss = Logits
for _ in range(4):
    x, y, w, pos, rows, places, mask, image = samples.batch(1, 224)
    count = int(mask.sum())
    height, width = (int(v) + 1 for v in places[0].amax(0))
    with torch.no_grad():
        found = trained(x, y, w, pos, rows, places, mask, image)[0].view(1, 96, -1)
        expected = theirs(
            input_ids=x,
            mm_token_type_ids=image.int(),
            pixel_values=rows[0, :count],
            image_grid_thw=torch.tensor([[1, height, width]]),
        ).logits
    used = (x != 0).nonzero()[-1, 1]  # the last token of a sequence predicts nothing: training gives it no position
    found, expected = found[:, :used], expected[:, :used]
    print(float((found - expected).abs().max() / expected.abs().max()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("experts", [8, 0])
def test_exported_vision_model(experts: int, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    nano = ROOT / "lynx_rt" / "models" / "lynx-nano"
    command = [sys.executable, "-c", CODE, str(tmp_path / "model"), str(nano), str(experts)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tools" / "training"), str(ROOT)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    differences = [float(word) for word in done.stdout.split()]
    # Two float32 evaluations of about 10 sums of 24 to 384 products per row in each of 7 blocks. Rounding errors of such sums add
    # like a random walk: sqrt(70 * 384) * 2^-24 = 1e-5 of the largest.
    assert len(differences) == 4 and max(differences) < 1e-5, differences
    check_tokens(tmp_path / "model")


def check_tokens(folder: Path) -> None:
    """The three tokens, the placeholder of a chat and the sizes of pictures are those of the training."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image", "image": "x.png"}]
    ids = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "5"},
            {"role": "user", "content": "Why?"},
        ],
        add_generation_prompt=True,
        return_dict=False,
    )
    text = "Q: What is it?\nA: 5<|eos|>Q: Why?\nA:"
    assert ids == [1, 4096, 4097, 4098, *tokenizer.encode(text, add_special_tokens=False)]
    size = json.loads((folder / "preprocessor_config.json").read_text())
    assert (size["patch_size"], size["size"]["longest_edge"]) == (8, 65536)
