"""The default policy on the shipped model: it must lose less than one point, and the model's own routing must answer as recorded.

The items are the first 100 of each of the 16 tasks in bench/tasks, whatever their outcome, decoded greedily with 16 of them running
and tasks mixed. The loss is in the mean over tasks; its error comes from the paired differences item by item.

tests/data/quality_gate.json has topk's answers in float32; `python tests/test_quality_gate.py` writes it anew. Kernels of
different instruction sets add in different orders: from scalar to AMX, over 2,240 items, the log-probability of a token moved by up
to 1.3e-5, and the margin of the most likely token over the next by up to 5.3e-5. An answer is therefore compared only where that
margin is at least 0.01 at every token, 190 times as much; this depends on the margin alone, not on whether the answer is right.
Other answers are recorded as null; they count in the loss like all answers. bfloat16 rounds 2^16 times as coarsely, so the gate runs
in float32.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from isas import ISAS

import lynx_rt
from lynx_rt import Engine, RequestOutput
from lynx_rt.research.eval import Item, is_correct, load_tasks
from lynx_rt.research.study_stats import mean_over_tasks

ROOT = Path(__file__).resolve().parents[1]
ANSWERS = Path(__file__).parent / "data" / "quality_gate.json"
ITEMS = 100  # per task
ROWS = 16
MAX_LOSS = 0.01
MIN_MARGIN = 0.01  # in the logarithm of the probability, between the most likely token and the next
PARAMS = {"temperature": 0, "max_tokens": 64, "stop": ["\n"]}


def items(per_task: int = ITEMS) -> list[Item]:
    chosen = [item for task in load_tasks(ROOT / "bench" / "tasks").values() for item in task[:per_task]]
    random.Random(0).shuffle(chosen)
    return chosen


def gate_engine(isa: str | None = None) -> Engine:
    # No prefix caching: both policies do the same work. No mixed chunks: the policy acts on every decode row.
    options = {"max_num_seqs": ROWS, "enable_prefix_caching": False, "enable_mixed_chunk": False}
    return Engine(lynx_rt.shipped_model(), dtype="float32", isa=isa, **options)


def differing(answered: list[tuple[Item, str]]) -> list[str]:
    """Returns the answers that are not the recorded ones."""
    recorded = json.loads(ANSWERS.read_text())
    wrong = []
    for item, text in answered:
        expected = recorded[item.task][item.number]
        if expected is not None and text != expected:
            wrong.append(f"{item.task} {item.number}: {text!r}, recorded {expected!r}")
    return wrong


@pytest.mark.slow
def test_default_policy_keeps_the_accuracy(record_property: Callable[[str, object], None]) -> None:
    chosen = items()
    texts, experts = {}, {}
    with gate_engine() as engine:
        for policy in ("topk", "lynx"):
            engine.set_expert_selection(policy)
            engine.reset_stats()
            outputs = engine.generate([item.prompt for item in chosen], PARAMS, use_tqdm=False)
            texts[policy] = [output.text for output in outputs]
            experts[policy] = engine.expert_stats()
            full_name = engine.expert_selection
    assert differing(list(zip(chosen, texts["topk"]))) == []

    marks = {policy: [float(is_correct(i, t)) for i, t in zip(chosen, each)] for policy, each in texts.items()}
    changes: dict[str, dict[int, list[float]]] = {}
    for item, topk, lynx in zip(chosen, marks["topk"], marks["lynx"]):
        changes.setdefault(item.task, {})[item.number] = [lynx - topk]
    change, error = mean_over_tasks(changes)
    accuracy = {policy: 100 * sum(each) / len(each) for policy, each in marks.items()}  # tasks are of equal size
    before, after = experts["lynx"].union_before, experts["lynx"].active
    figures = {
        "policy": full_name,
        "items": len(chosen),
        "accuracy_topk": round(accuracy["topk"], 3),
        "accuracy_lynx": round(accuracy["lynx"], 3),
        "change_points": round(100 * change, 3),
        "standard_error_points": round(100 * error, 3),
        "experts_before": round(before, 3),
        "experts_after": round(after, 3),
        "saved_percent": round(100 * (1 - after / before), 2),
        "answers_changed": sum(a != b for a, b in zip(texts["topk"], texts["lynx"])),
        "rows_per_step": round(experts["lynx"].rows_per_step, 2),
    }
    for name, value in figures.items():
        record_property(name, value)
    print(*(f"{name}: {value}" for name, value in figures.items()), sep="\n")  # with -rA
    assert after < before and experts["topk"].active == experts["topk"].union_before
    assert figures["answers_changed"] > 0, "the policy did not act"
    assert change > -MAX_LOSS, figures


@pytest.mark.parametrize("isa", ISAS)
def test_topk_answers_as_recorded_on_every_instruction_set(isa: str) -> None:
    chosen = items(4)
    with gate_engine(isa) as engine:
        outputs = engine.generate([item.prompt for item in chosen], PARAMS, use_tqdm=False)
    assert differing([(item, output.text) for item, output in zip(chosen, outputs)]) == []


def test_recorded_answers_are_nearly_all() -> None:
    """This keeps the comparison from becoming empty."""
    recorded = json.loads(ANSWERS.read_text())
    assert len(recorded) == 16 and {len(each) for each in recorded.values()} == {ITEMS}
    assert sum(text is not None for each in recorded.values() for text in each) >= 0.98 * 16 * ITEMS


def margin(output: RequestOutput) -> float:
    """Returns the smallest margin over the tokens of an answer."""
    steps = output.outputs[0].logprobs or []
    ranked = [sorted((entry.logprob for entry in step.values()), reverse=True) for step in steps]
    return min(first - second for first, second in ranked)


def write_answers() -> None:
    chosen = sorted(items(), key=lambda item: (item.task, item.number))
    with gate_engine() as engine:
        outputs = engine.generate([item.prompt for item in chosen], {**PARAMS, "logprobs": 2}, use_tqdm=False)
    recorded: dict[str, list[str | None]] = {}
    for item, output in zip(chosen, outputs):
        recorded.setdefault(item.task, []).append(output.text if margin(output) >= MIN_MARGIN else None)
    lines = [f"{json.dumps(task)}: {json.dumps(texts)}" for task, texts in recorded.items()]
    ANSWERS.parent.mkdir(exist_ok=True)
    ANSWERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write_answers()
