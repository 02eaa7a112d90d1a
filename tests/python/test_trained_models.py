"""The trained models of bench/models that answer the questions of bench/tasks: as their README says, and as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest

import lynx_rt
from lynx_rt.research.eval import is_correct, load_items

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "bench" / "models"
# Right answers to ten questions of each family, in %, float32, greedy.
RIGHT = {"lynx-nano-e8": 66.875, "lynx-nano-hybrid": 56.25}


@pytest.fixture(params=sorted(RIGHT), scope="module")
def model(request: pytest.FixtureRequest) -> Path:
    return MODELS / request.param


def test_answers(model: Path) -> None:
    items = load_items(ROOT / "bench" / "tasks", limit=10)
    with lynx_rt.Engine(model, dtype="float32") as engine:
        params = {"temperature": 0, "max_tokens": 64, "stop": ["\n"]}
        outputs = engine.generate([item.prompt for item in items], params)
    right = [is_correct(item, output.outputs[0].text) for item, output in zip(items, outputs, strict=True)]
    # Another machine may decide near ties otherwise: two questions of 160.
    assert len(items) == 160 and abs(100 * sum(right) / len(right) - RIGHT[model.name]) <= 1.25


def test_tokens_are_those_of_transformers(model: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    items = load_items(ROOT / "bench" / "tasks", limit=1)
    with lynx_rt.Engine(model, dtype="float32") as engine:
        params = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
        for ours in engine.generate([item.prompt for item in items], params):
            ids = torch.tensor([ours.prompt_token_ids])
            made = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24,
                                   min_new_tokens=24, do_sample=False, eos_token_id=None)  # fmt: skip
            assert ours.outputs[0].token_ids == made[0, ids.shape[1] :].tolist(), ours.prompt
