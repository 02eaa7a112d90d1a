"""Measures the accuracy of expert-selection policies and quantised weights on task sets, in greedy, mixed, always full batches.

A task set is a folder of JSON-lines files with `task`, `prompt`, `answer` and, where only the result counts, `final`. Questions about
a picture have `image`, the name of a file beside theirs, and one placeholder in the prompt. `metric` names another score than exact match
(metrics.py), and `answers` further texts that count as right (for "vqa": one per person).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lynx_rt.engine.engine import Engine
from lynx_rt.engine.outputs import ExpertStats, sum_prompt_logprobs
from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.errors import LynxError, ValidationError
from lynx_rt.research.metrics import METRICS
from lynx_rt.text.text_file import read_text

_FINAL_MARK = "####"  # stands before the result in a worked answer


@dataclass(slots=True, frozen=True)
class Item:
    """One question of a task, and its answer."""

    task: str
    prompt: str
    answer: str  # the exact continuation, stripped
    final: str | None  # the result after "####", where that is enough
    number: int = 0  # place among its task's items, in the order of the files
    metric: str = "exact"  # or a name of METRICS
    answers: tuple[str, ...] = ()  # of that metric
    image: Path | None = None

    def media(self) -> dict[str, Any]:
        """Returns the part of a prompt that holds the picture: {} or {"multi_modal_data": {"image": bytes of the file}}."""
        return {} if self.image is None else {"multi_modal_data": {"image": self.image.read_bytes()}}

    def score(self, completion: str) -> float:
        """Returns the score of an answer, 0..1."""
        if self.metric == "exact":
            return float(is_correct(self, completion))
        return METRICS[self.metric](completion.strip(), self.answers)


@dataclass(slots=True)
class PolicyResult:
    """Results of one policy on one list of items."""

    quantization: str  # of the engine's weights
    selection: str
    scores: dict[str, list[float]]  # task -> per item 0..1, in the order of the list
    experts: ExpertStats
    decode_only_share: float  # share of generated tokens from decode-only steps, where selection acts, 0..1
    seconds: float
    perplexity: float  # of the expected answers, under the model's own routing

    @property
    def name(self) -> str:
        """What differs from the plain model: "lynx", "int4", "int4 lynx"; "topk" where nothing does."""
        parts = [self.quantization] * (self.quantization != "none") + [self.selection] * (self.selection != "topk")
        return " ".join(parts) or "topk"

    @property
    def task_accuracy(self) -> dict[str, float]:
        """Mean score per task, 0..1."""
        return {task: _mean(scores) for task, scores in sorted(self.scores.items())}

    @property
    def accuracy(self) -> float:
        """Mean over tasks, 0..1."""
        return _mean(list(self.task_accuracy.values()))

    @property
    def standard_error(self) -> float:
        """The standard error of `accuracy` by the variance within tasks; NaN where a task has one item only."""
        return _error_of_mean(self.scores)

    def difference(self, other: PolicyResult) -> tuple[float, float]:
        """accuracy - other.accuracy, and its standard error (or NaN) from the items' paired differences."""
        pairs = {
            task: [a - b for a, b in zip(scores, other.scores[task], strict=True)]
            for task, scores in self.scores.items()
        }
        return self.accuracy - other.accuracy, _error_of_mean(pairs)

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields and figures in JSON's types."""
        return {
            "quantization": self.quantization,
            "selection": self.selection,
            "perplexity": self.perplexity,
            "accuracy": self.accuracy,
            "standard_error": None if math.isnan(error := self.standard_error) else error,
            "task_accuracy": self.task_accuracy,
            "items": sum(len(scores) for scores in self.scores.values()),
            "decode_only_share": self.decode_only_share,
            "seconds": self.seconds,
            "experts": asdict(self.experts),
        }


def load_tasks(folder: str | Path) -> dict[str, list[Item]]:
    """Returns every task's items in the order of the files. Raises ValidationError for a folder without tasks or a malformed line."""
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise ValidationError(f"{folder} has no *.jsonl task files", "tasks")
    by_task: dict[str, list[Item]] = {}
    for file in files:
        for number, line in enumerate(read_text(file, "tasks").split("\n"), 1):
            if line.strip():
                item = _parse_item(line, f"{file}:{number}", file.parent)
                items = by_task.setdefault(item.task, [])
                items.append(replace(item, number=len(items)))
    return by_task


def load_items(folder: str | Path, limit: int | None = None, seed: int = 0) -> list[Item]:
    """Returns all tasks' items in one random order, so that a batch mixes tasks; `limit` per task, drawn by `seed`."""
    chosen: list[Item] = []
    for items in load_tasks(folder).values():
        random.Random(seed).shuffle(items)
        chosen += items[:limit]
    random.Random(seed).shuffle(chosen)
    return chosen


def is_correct(item: Item, completion: str) -> bool:
    """Whether the stripped text equals the answer, or the text after "####" the final result."""
    text = completion.strip()
    if text == item.answer:
        return True
    _, mark, final = text.rpartition(_FINAL_MARK)
    return bool(mark) and item.final is not None and final.strip() == item.final


def answer_perplexity(engine: Engine, items: Sequence[Item], *, use_tqdm: bool | None = None) -> float:
    """Returns exp of the mean negative log-probability of a token of the expected answers, each after its own question.

    Answers enter as prompts, where every policy leaves the routing as it is, so this measures the weights.
    """
    encode = engine.get_tokenizer().encode
    starts = [len(encode(item.prompt)) for item in items]
    prompts = [encode(f"{item.prompt} {item.answer}") for item in items]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    requests = [{"prompt_token_ids": ids, **item.media()} for ids, item in zip(prompts, items, strict=True)]
    outputs = engine.generate(requests, params, use_tqdm=use_tqdm)
    counts = [len(ids) - start for ids, start in zip(prompts, starts, strict=True)]
    # A picture's placeholder becomes many tokens, so that an answer is found from the end.
    total = sum(
        sum_prompt_logprobs(output, len(output.prompt_token_ids) - count)
        for output, count in zip(outputs, counts, strict=True)
    )
    return math.exp(-total / sum(counts))


def evaluate(
    engine: Engine,
    items: Sequence[Item],
    selection: str,
    *,
    max_tokens: int = 64,
    perplexity: float = math.nan,
    quantization: str = "none",
    use_tqdm: bool | None = None,
) -> PolicyResult:
    """Runs all items under one policy: greedy, up to the end of text, a newline or `max_tokens`. The result also holds
    `quantization`, with which the engine was made, and answer_perplexity().

    The engine's max_num_seqs is the batch. Make the engine without prefix caching, so that every policy does the same
    work, and without mixed chunks, so that selection acts on every decode row. After the run, the engine keeps the policy
    and the statistics of this run.
    """
    engine.set_expert_selection(selection)
    engine.reset_stats()
    # The salt keeps a policy from finding the pictures of an earlier one in the encoder cache.
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, stop=["\n"], cache_salt=selection)
    outputs = engine.generate([{"prompt": item.prompt, **item.media()} for item in items], params, use_tqdm=use_tqdm)
    scores: dict[str, list[float]] = {}
    for item, output in zip(items, outputs, strict=True):
        if output.outputs[0].error:
            raise LynxError(f"{item.task}: {output.outputs[0].error}")
        scores.setdefault(item.task, []).append(item.score(output.text))
    stats = engine.stats()
    return PolicyResult(
        quantization=quantization,
        selection=selection,
        scores=scores,
        experts=engine.expert_stats(),
        decode_only_share=stats.decode_rows / max(stats.generation_tokens, 1),
        seconds=stats.step_seconds,
        perplexity=perplexity,
    )


def _parse_item(line: str, place: str, folder: Path) -> Item:
    try:
        fields = json.loads(line)
        final, metric = fields.get("final"), fields.get("metric", "exact")
        if not isinstance(fields["prompt"], str) or not fields["prompt"]:
            raise ValueError("the prompt must be text")
        if metric not in ("exact", *METRICS):
            raise ValueError(f"metric must be one of exact, {', '.join(METRICS)}, got {metric!r}")
        answers = fields.get("answers", [fields["answer"]])
        if not isinstance(answers, list) or not answers:
            raise ValueError("answers must be a list of texts")
        image = None if fields.get("image") is None else folder / fields["image"]
        if image is not None and not image.is_file():
            raise ValueError(f"no image {fields['image']!r} beside the file")
        return Item(
            str(fields["task"]),
            fields["prompt"],
            str(fields["answer"]).strip(),
            None if final is None else str(final).strip(),
            metric=metric,
            answers=tuple(str(answer) for answer in answers),
            image=image,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValidationError(f"{place}: expected an object with task, prompt and answer: {error!r}", "tasks") from None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _error_of_mean(samples: dict[str, list[float]]) -> float:
    """Standard error of the mean over tasks of each task's mean; NaN where a task has one sample only."""
    if min(map(len, samples.values()), default=0) < 2:
        return math.nan
    variance = 0.0
    for values in samples.values():
        mean = _mean(values)
        variance += sum((value - mean) ** 2 for value in values) / len(values) ** 2
    return math.sqrt(variance) / max(len(samples), 1)
