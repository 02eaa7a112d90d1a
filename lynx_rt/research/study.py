"""Runs a study of expert selection: policies x batch sizes x compositions of the batch x seeds, measured on task sets.

A run measures exact match, or another metric, per task; perplexity of held-out text, which enters token by token so that the policy acts on it; and
experts, bytes and time of the decode-only steps.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import random
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lynx_rt.engine.engine import Engine
from lynx_rt.engine.outputs import EngineStats, RequestOutput, layer_mean
from lynx_rt.engine.progress import WorkBar
from lynx_rt.engine.sampling_params import SamplingParams
from lynx_rt.errors import LynxError, ValidationError
from lynx_rt.research.eval import Item, is_correct, load_tasks
from lynx_rt.research.study_records import FORMAT, Record, RunKey, RunLog, scores_of
from lynx_rt.text.text_file import read_text

REFERENCE = "topk"
MINORITY = "minority:"
_MINORITY_SHARE = 1 / 16  # share of decode rows that belong to the minority task
_TEXT_CHUNK = 256  # tokens of a text per sequence
Prompt = dict[str, Any]  # of Engine.add_request()
TokenText = tuple[list[int] | Prompt, list[int]]  # given tokens, and the tokens that follow


@dataclass(kw_only=True)
class StudyOptions:
    """What a study runs. Raises ValidationError that names the field."""

    model: str
    tasks: Path
    selections: Sequence[str]
    batch_sizes: Sequence[int]
    batches: Sequence[str] = ("mixed",)  # "mixed", "single", "minority:TASK"
    seeds: Sequence[int] = (0, 1, 2)
    items: int = 100  # per task and seed
    tasks_only: Sequence[str] = ()  # () = all of the folder
    max_tokens: int = 64
    text: Path | None = None  # held-out text, besides the expected answers
    perplexity: bool = True
    engine: Mapping[str, Any] = field(default_factory=dict)  # device, dtype, quantization, virtual_residents, ...
    num_experts_per_tok: int = 0  # of the model, on which defaults of policies depend; 0 = not known

    def __post_init__(self) -> None:
        pool = load_tasks(self.tasks)
        if unknown := [task for task in self.tasks_only if task not in pool]:
            raise ValidationError(
                f"tasks_only: no task {unknown[0]!r} in {self.tasks}; it has {', '.join(pool)}", "tasks_only"
            )
        self.pool = {task: pool[task] for task in sorted(self.tasks_only or pool)}
        for batches in self.batches:
            check_batches(batches)
            if batches.startswith(MINORITY) and batches.removeprefix(MINORITY) not in self.pool:
                raise ValidationError(f"batches: {batches}: no such task; there are {', '.join(self.pool)}", "batches")
            if batches.startswith(MINORITY) and len(self.pool) < 2:
                raise ValidationError(f"batches: {batches} needs at least two tasks, got one", "batches")
        # topk is the reference of all differences. It runs first, so that an interrupted study has it.
        self.policies: dict[str, str] = {}  # canonical form -> form as it was given
        for selection in (REFERENCE, *self.selections):
            self.policies.setdefault(canonical(selection, self.num_experts_per_tok), selection)
        self.given_text = None if self.text is None else read_text(self.text, "text")

    @property
    def model_name(self) -> str:
        return Path(self.model).resolve().name

    def settings(self) -> dict[str, Any]:
        """Settings that two runs must share to be compared."""
        content = json.dumps([_content(item) for items in self.pool.values() for item in items])
        engine = self.engine
        cache = {name: engine[name] for name in ("virtual_residents", "virtual_residency") if name in engine}
        return {
            **cache,
            "model": self.model_name,
            "quantization": engine.get("quantization") or "none",
            "dtype": engine.get("dtype", "auto"),
            "device": engine.get("device", "auto"),
            "num_threads": engine.get("num_threads"),
            "tasks": list(self.pool),
            "tasks_digest": _digest(content),
            "items": self.items,
            "max_tokens": self.max_tokens,
            "perplexity": self.perplexity,
            "text": None
            if self.given_text is None or self.text is None
            else f"{self.text.name} {_digest(self.given_text)}",
        }

    def run_keys(self) -> list[RunKey]:
        """Returns all runs in the order in which they are made: one comparison is complete before the next begins."""
        return [
            RunKey(policy, batch, batches, seed)
            for batch in self.batch_sizes
            for seed in self.seeds
            for batches in self.batches
            for policy in self.policies
        ]


def canonical(selection: str, num_experts_per_tok: int = 0) -> str:
    """Returns the full form of a policy, with its defaults for such a model. Raises ValidationError."""
    from lynx_rt import _C

    return _C.parse_selection(selection, num_experts_per_tok)


def check_batches(text: str) -> str:
    """Returns the text. Raises ValidationError where it names no composition of batches."""
    if text in ("mixed", "single") or (text.startswith(MINORITY) and text != MINORITY):
        return text
    raise ValidationError(f"batches must be mixed, single or minority:TASK, got {text!r}", "batches")


def compose(
    pool: Mapping[str, Sequence[Item]], batches: str, seed: int, limit: int, rows_of: Callable[[Item], int]
) -> list[list[Item]]:
    """Returns the queues that one run works off, one after the other.

    mixed: one queue of `limit` items per task.  single: the same items, a queue per task.  minority:TASK: one queue in which
    that task makes up one of 16 decode rows on average, and all others have equally many items; `limit` of the task, or
    as many as the others suffice for.  rows_of: decode rows that an item will take.
    """
    drawn = {}
    for task, items in pool.items():
        drawn[task] = list(items)
        random.Random(f"{seed} {task}").shuffle(drawn[task])
    if batches.startswith(MINORITY):
        queue = _minority_queue(drawn, batches.removeprefix(MINORITY), limit, rows_of)
    else:
        chosen = {task: items[:limit] for task, items in drawn.items()}
        if batches == "single":
            return list(chosen.values())
        queue = [item for items in chosen.values() for item in items]
    random.Random(seed).shuffle(queue)
    return [queue]


def _minority_queue(
    drawn: Mapping[str, list[Item]], task: str, limit: int, rows_of: Callable[[Item], int]
) -> list[Item]:
    others = [items for name, items in drawn.items() if name != task]
    # own: rows of one item of the task. foreign: rows of one item of each other task, added up.
    own = statistics.fmean(map(rows_of, drawn[task]))
    foreign = sum(statistics.fmean(map(rows_of, items)) for items in others)
    per_item = own * (1 / _MINORITY_SHARE - 1) / foreign  # items of each other task for one of the task
    count = min(limit, len(drawn[task]), int(min(map(len, others)) / per_item))
    if count < 1:
        raise ValidationError(f"batches: {MINORITY}{task}: too few items of other tasks for one of {task}", "batches")
    return drawn[task][:count] + [item for items in others for item in items[: max(1, round(count * per_item))]]


def run_study(options: StudyOptions, log: RunLog, command: str) -> int:
    """Makes the runs that the log lacks, and returns their number. Runs that are finished when Ctrl-C comes are in the log."""
    settings = options.settings()
    pending = [key for key in options.run_keys() if not log.has(key, settings)]
    done = 0
    with WorkBar(len(pending), sum(_work(options, key) for key in pending)) as bar:
        for batch in dict.fromkeys(key.batch for key in pending):
            with _open_engine(options, batch) as engine:
                for policy in options.policies:  # raises for a policy that this model cannot have, before hours of runs
                    engine.set_expert_selection(policy)
                encode = engine.get_tokenizer().encode
                rows_of = functools.cache(lambda item, encode=encode: len(encode(f" {item.answer}")))
                for key in [key for key in pending if key.batch == batch]:
                    bar.begin(str(key))
                    record = _run(engine, options, key, rows_of, bar.add)
                    record["settings"], record["command"] = settings, _without_paths(command, options)
                    log.append(record)
                    done += 1
                    bar.finish(_summary(record))
    return done


def _open_engine(options: StudyOptions, batch: int) -> Engine:
    # Prefix caching is off, so that a later policy does not find the prompts of an earlier one. Mixed steps are off, so that
    # selection acts on every decode row although answers are short and prompts arrive all the time.
    fixed: dict[str, Any] = {"max_num_seqs": batch, "enable_prefix_caching": False, "enable_mixed_chunk": False}
    given = dict(options.engine)
    if given.get("quantization") in (None, "none"):
        given.pop("quantization_cache", None)
    return Engine(options.model, **fixed, **given)


def _work(options: StudyOptions, key: RunKey) -> float:
    """Estimates the work of a run, for the time left: rows get cheaper in larger batches, roughly as 1 / sqrt(batch)."""
    return len(options.pool) * options.items / math.sqrt(key.batch)


def _run(
    engine: Engine,
    options: StudyOptions,
    key: RunKey,
    rows_of: Callable[[Item], int],
    add_work: Callable[[float], None],
) -> Record:
    start = time.perf_counter()
    encode = engine.get_tokenizer().encode
    queues = compose(options.pool, key.batches, key.seed, options.items, rows_of)
    passes = 2 if options.perplexity else 1
    per_item = _work(options, key) / passes / sum(map(len, queues))
    engine.set_expert_selection(key.policy)
    engine.reset_stats()
    meter = StepMeter(engine)
    answers: dict[str, dict[str, Any]] = {}
    waits: list[float] = []  # ms from the first step of a request to its first token
    # The salt keeps a run from finding the pictures of an earlier one in the encoder cache: each policy runs the tower itself.
    params = SamplingParams(temperature=0.0, max_tokens=options.max_tokens, stop=["\n"], cache_salt=str(key))
    for queue in queues:
        requests = [({"prompt_token_ids": encode(item.prompt), **item.media()}, params) for item in queue]
        outputs = _work_off(engine, requests, meter, lambda: add_work(per_item))
        waits += [1e3 * time_taken for output in outputs if (time_taken := output.metrics.prefill_time) is not None]
        for item, output in zip(queue, outputs, strict=True):
            entry = answers.setdefault(item.task, {"ids": [], "correct": "", "tokens": 0})
            entry["ids"].append(item.number)
            entry["correct"] += "01"[is_correct(item, output.text)]
            entry["tokens"] += len(output.outputs[0].token_ids)
            if item.metric != "exact":
                entry.setdefault("scores", []).append(item.score(output.text))
    results: dict[str, Any] = {"items": dict(sorted(answers.items())), **_measured(engine, meter, waits)}
    if options.perplexity:
        sums: dict[str, list[float]] = {}
        for queue in queues:
            texts = [_answer_text(item, encode) for item in queue]
            logprobs = forced_logprobs(engine, texts, lambda: add_work(per_item))
            for item, (_, forced), logprob in zip(queue, texts, logprobs, strict=True):
                entry_sums = sums.setdefault(item.task, [0.0, 0])
                entry_sums[0] += logprob
                entry_sums[1] += len(forced)
        results["logprobs"] = dict(sorted(sums.items()))
        results["perplexity"] = math.exp(-sum(s for s, _ in sums.values()) / sum(n for _, n in sums.values()))
    if options.given_text is not None:
        results["text_perplexity"] = heldout_perplexity(engine, text_chunks(engine, options.given_text), key.policy)
    results["seconds"] = time.perf_counter() - start
    return {
        "format": FORMAT,
        "key": asdict(key),
        "settings": {},
        "command": "",
        "selection": options.policies[key.policy],
        "versions": _versions(),
        "device": engine.device,
        "dtype": engine.dtype,
        "results": results,
    }


class StepMeter:
    """Collects time and bytes of every decode-only step since it was made. Call note() after each step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._last = engine.stats()
        self.seconds: list[float] = []
        self.bytes_read = 0
        self.expert_bytes = 0

    def note(self) -> None:
        last, now = self._last, self._engine.stats()
        self._last = now
        if now.decode_steps > last.decode_steps:
            self.seconds.append(now.decode_seconds - last.decode_seconds)
            self.bytes_read += now.bytes_read - last.bytes_read
            self.expert_bytes += _expert_bytes(now) - _expert_bytes(last)


def _expert_bytes(stats: EngineStats) -> int:
    return sum(op.bytes for op in stats.ops if op.name == "expert_ffn")


def _work_off(
    engine: Engine,
    requests: Sequence[tuple[Prompt, SamplingParams]],
    meter: StepMeter | None,
    on_finish: Callable[[], None] = lambda: None,
) -> list[RequestOutput]:
    """Adds all requests to the engine at once, which keeps its batch full. Raises LynxError if a request failed."""
    order: dict[str, int] = {}  # id of a request -> its place in the list
    try:
        for prompt, params in requests:
            order[engine.add_request(prompt, params)] = len(order)
        finished: dict[int, RequestOutput] = {}
        while len(finished) < len(order):
            changed = engine.step()
            if meter is not None:
                meter.note()
            for output in changed:
                if output.finished:
                    if output.outputs[0].error:
                        raise LynxError(output.outputs[0].error)
                    finished[order[output.request_id]] = output
                    on_finish()
    except BaseException:
        engine.abort(list(order))
        raise
    return [finished[place] for place in range(len(order))]


def _measured(engine: Engine, meter: StepMeter, waits: Sequence[float]) -> dict[str, Any]:
    stats, experts = engine.stats(), engine.expert_stats()
    steps = max(stats.decode_steps, 1)
    return {
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.num_experts_per_tok,
        "union_before": experts.union_before,
        "active": experts.active,
        "retained_mass": experts.retained_mass,
        "remapped_share": layer_mean(stats.layers, "remapped_pairs", "rows") / max(experts.num_experts_per_tok, 1),
        "guard_share": layer_mean(stats.layers, "guard_hits", "steps"),
        "changed_share": layer_mean(stats.layers, "changed_rows", "rows"),
        "misses_before": layer_mean(stats.layers, "misses_before", "steps"),
        "misses": layer_mean(stats.layers, "misses", "steps"),
        "layers": [asdict(layer) for layer in stats.layers],
        "rows_per_step": experts.rows_per_step,
        "decode_steps": stats.decode_steps,
        "decode_only_share": stats.decode_rows / max(stats.generation_tokens, 1),
        "generated_tokens": stats.generation_tokens,
        "prompt_tokens": stats.prompt_tokens,
        "step_ms_mean": 1e3 * stats.decode_seconds / steps,
        "step_ms_median": 1e3 * statistics.median(meter.seconds) if meter.seconds else 0.0,
        "bytes_per_step": meter.bytes_read / steps,
        "expert_bytes_per_step": meter.expert_bytes / steps,
        "decode_tokens_per_s": stats.decode_rows / stats.decode_seconds if stats.decode_seconds else 0.0,
        "tokens_per_s": stats.generation_tokens / stats.step_seconds if stats.step_seconds else 0.0,
        "ttft_ms_mean": statistics.fmean(waits) if waits else 0.0,
        "ttft_ms_median": statistics.median(waits) if waits else 0.0,
        "images_encoded": stats.images_encoded,
        "tower_share": stats.encoder_seconds / stats.step_seconds if stats.step_seconds else 0.0,
        "decode_share": stats.decode_seconds / stats.step_seconds if stats.step_seconds else 0.0,
    }


def forced_logprobs(
    engine: Engine, texts: Sequence[TokenText], on_finish: Callable[[], None] = lambda: None
) -> list[float]:
    """Returns the sum of log-probabilities of the following tokens of each text, which enter one by one in decode steps.

    The policy acts on these steps. The first of these tokens comes from the prompt's last row, which is prefill.
    """
    requests = [
        (
            given if isinstance(given, dict) else {"prompt_token_ids": given},
            SamplingParams(temperature=0.0, forced_token_ids=forced, logprobs=0, detokenize=False),
        )
        for given, forced in texts
    ]
    outputs = _work_off(engine, requests, None, on_finish)
    return [output.outputs[0].cumulative_logprob or 0.0 for output in outputs]


def heldout_perplexity(engine: Engine, texts: Sequence[TokenText], selection: str) -> float:
    """Returns exp of the mean negative log-probability of a following token under a policy. The engine's batch is full of texts."""
    engine.set_expert_selection(selection)
    total = sum(forced_logprobs(engine, texts))
    return math.exp(-total / sum(len(forced) for _, forced in texts))


def text_chunks(engine: Engine, text: str) -> list[TokenText]:
    """Cuts a text into sequences of at most 256 tokens, of which the first is given."""
    ids = engine.encode(text)
    size = min(_TEXT_CHUNK, engine.max_model_len)
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    chunks: list[TokenText] = [(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]
    if not chunks:
        raise ValidationError("text: expected at least two tokens", "text")
    return chunks


def _answer_text(item: Item, encode: Callable[[str], list[int]]) -> TokenText:
    given = encode(item.prompt)
    return {"prompt_token_ids": given, **item.media()}, encode(f"{item.prompt} {item.answer}")[len(given) :]


def _content(item: Item) -> list[Any]:
    """Returns what two runs on the same item share."""
    text = [item.task, item.prompt, item.answer]
    if item.metric == "exact" and item.image is None:
        return text
    image = None if item.image is None else hashlib.sha256(item.image.read_bytes()).hexdigest()
    return [*text, item.metric, list(item.answers), image]


def _summary(record: Record) -> str:
    results, key = record["results"], RunKey(**record["key"])
    accuracy = statistics.fmean(statistics.fmean(scores_of(entry)) for entry in results["items"].values())
    return f"{key}: {100 * accuracy:.1f} %, {results['active']:.1f} experts, {results['seconds']:.0f} s"


def _versions() -> dict[str, str]:
    from lynx_rt import _C

    build = _C.build_info()
    return {
        "lynx_rt": build["version"],
        "compiler": build["compiler"],
        "python": platform.python_version(),
        "os": sys.platform,
    }


def _without_paths(command: str, options: StudyOptions) -> str:
    """Replaces absolute paths of the command by names: a record says what was measured, not where it was stored."""
    model = str(options.model)
    words = [options.model_name if word == model else word for word in shlex.split(command)]
    return shlex.join(re.sub(r"(^|=)/.*/", r"\1", word) for word in words)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
