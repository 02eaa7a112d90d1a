"""The models that tools/training trains and exports compute what transformers' classes compute from the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The arithmetic of training is in float32 here, so that no choice of experts depends on the rounding to bfloat16.
CODE = """
import sys
import torch
import model
model.BF = torch.float32
import export, hybrid
from transformers import AutoModelForCausalLM

torch.manual_seed(3)
sizes = dict(vocab=200, hidden=64, layers=4, heads=2, kv_heads=1, head_dim=32, topk=2, inter=32)
sizes["experts"] = 0 if sys.argv[1] == "dense" else 8
if sys.argv[1] == "hybrid":
    config = hybrid.HybridConfig(**sizes, key_heads=2, value_heads=4, key_dim=16, value_dim=16, shared=32)
    trained = hybrid.HybridLM(config)
else:
    config = model.Config(**sizes)
    trained = model.LM(config)
for name, values in trained.named_parameters():
    if values.dim() == 1 and name.split(".")[-1] not in ("a_log", "dt"):
        values.data += 0.2 * torch.randn_like(values)
checkpoint = {"model": trained.state_dict(), "hybrid": sys.argv[1] == "hybrid", "config": vars(config)}
export.export(checkpoint, sys.argv[2], None, torch.float32)
theirs = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
ids, y = torch.randint(3, 200, (2, 2, 128))
with torch.no_grad():
    expected = torch.nn.functional.cross_entropy(theirs(ids).logits.view(-1, 200), y.view(-1), reduction="none")
    found = trained(ids, y, torch.full((2, 128), 1 / 256))[1]
print(float((found - expected).abs().max()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moe", "dense", "hybrid"])
def test_exported_models(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, kind, str(tmp_path / "model")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "training")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    # Losses of about 5 nats, from logits with rounding errors of some 1e-6 of their size.
    assert float(done.stdout.split()[-1]) < 2e-5
