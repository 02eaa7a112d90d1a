"""Arrivals and lengths of requests: random, from the public trace files, or drawn from fits of those.

Files are Azure's CSV (TIMESTAMP,ContextTokens,GeneratedTokens; github.com/Azure/AzurePublicDataset) and Mooncake's JSONL
({"timestamp": ms, "input_length", "output_length", "hash_ids"}; github.com/kvcache-ai/Mooncake), where equal leading
`hash_ids` mean that prompts begin with the same blocks of 512 tokens.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from lynx_rt.errors import LynxError, ValidationError

HASH_BLOCK_TOKENS = 512
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_EPOCH = datetime(2024, 1, 1)


@dataclass(frozen=True)
class Arrival:
    """One request. at: seconds since the start.  blocks: ids of its first blocks of `block_tokens` tokens."""

    at: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = HASH_BLOCK_TOKENS


@dataclass(frozen=True)
class Fit:
    """Log-normal lengths, exp(N(mu, sigma)) cut at `most`, and gamma gaps with a mean rate and coefficient of variation."""

    input: tuple[float, float]  # mu, sigma
    output: tuple[float, float]
    most: tuple[int, int]  # of input and output tokens: the trace's 99th percentiles
    rate: float  # requests per second
    cv: float  # of the gaps between arrivals


# Fitted to the files of Azure's LLM inference traces of 2023 (8,819 and 19,366 requests). Input and output are drawn
# independently; the conversations' correlation is -0.11.
FITS = {
    "azure-code": Fit((7.00, 1.36), (2.79, 0.85), (7436, 251), 2.6, 13.0),
    "azure-conv": Fit((6.63, 0.99), (5.02, 0.86), (4142, 601), 5.5, 1.09),
}


def arrival_times(count: int, rate: float, burstiness: float, rng: np.random.Generator) -> list[float]:
    """Returns seconds at which `count` requests are sent.

    rate: requests per second; inf = all at 0.  burstiness: the shape g of gamma gaps with mean 1 / rate, whose coefficient
    of variation is 1 / sqrt(g): 1 = Poisson arrivals, below 1 in bursts, inf = even gaps. Like `vllm bench serve`, the times
    are stretched so that the last one is at count / rate: seeds share one rate.
    """
    if math.isinf(rate) or count == 0:
        return [0.0] * count
    gaps = np.ones(count) if math.isinf(burstiness) else rng.gamma(burstiness, 1.0, count)
    times = np.cumsum(gaps)
    return [float(t) for t in times * (count / rate / times[-1])] if times[-1] > 0 else [0.0] * count


def random_lengths(count: int, mean: int, range_ratio: float, rng: np.random.Generator) -> list[int]:
    """Returns lengths from mean * (1 - range_ratio) to mean * (1 + range_ratio), all equally likely; at least 1."""
    low, high = math.floor(mean * (1 - range_ratio)), math.ceil(mean * (1 + range_ratio))
    return [max(1, int(n)) for n in rng.integers(low, high + 1, count)]


def synthesize(kind: str, count: int, rng: np.random.Generator, burstiness: float | None = None) -> list[Arrival]:
    """Draws a trace like a published one. kind: of FITS.  burstiness: instead of the fit's 1 / cv^2. Raises ValidationError."""
    if kind not in FITS:
        raise ValidationError(f"trace: expected one of {', '.join(FITS)}, got {kind!r}", "trace")
    fit = FITS[kind]
    inputs, outputs = (
        np.clip(np.rint(rng.lognormal(mu, sigma, count)), 1, most)
        for (mu, sigma), most in zip((fit.input, fit.output), fit.most, strict=True)
    )
    times = arrival_times(count, fit.rate, burstiness or fit.cv**-2, rng)
    return [Arrival(t, int(i), int(o)) for t, i, o in zip(times, inputs, outputs, strict=True)]


def read_trace(path: str | Path) -> list[Arrival]:
    """Reads a file of either form, told apart by its first character. The first request is at 0. Raises LynxError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise LynxError(f"trace {path}: {error}", "trace") from None
    lines = [line for line in text.splitlines() if line.strip()]
    mooncake = bool(lines) and lines[0].lstrip().startswith("{")
    rows: list[Any] = lines if mooncake else list(csv.DictReader(lines))
    arrivals = []
    for number, row in enumerate(rows, 1 if mooncake else 2):
        try:
            arrivals.append(_mooncake(json.loads(row)) if mooncake else _azure(row))
        except (KeyError, TypeError, ValueError) as error:
            form = "timestamp, input_length, output_length" if mooncake else ", ".join(_AZURE)
            raise LynxError(f"trace {path}, line {number}: expected {form}: {error!r}", "trace") from None
    if not arrivals:
        raise LynxError(f"trace {path} has no requests", "trace")
    arrivals.sort(key=lambda arrival: arrival.at)
    return [replace(arrival, at=arrival.at - arrivals[0].at) for arrival in arrivals]


def _mooncake(row: dict[str, Any]) -> Arrival:
    blocks = tuple(int(block) for block in row.get("hash_ids", ()))
    return Arrival(float(row["timestamp"]) / 1e3, int(row["input_length"]), int(row["output_length"]), blocks)


def _azure(row: dict[str, str]) -> Arrival:
    moment, _, fraction = row["TIMESTAMP"].removesuffix("+00:00").removesuffix("Z").partition(".")
    seconds = (datetime.fromisoformat(moment) - _EPOCH).total_seconds() + float(f"0.{fraction or 0}")
    return Arrival(seconds, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def write_trace(path: str | Path, arrivals: Sequence[Arrival]) -> None:
    """Writes Mooncake's form where the name ends with .jsonl (times in milliseconds), else Azure's (100 nanoseconds)."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        if str(path).endswith(".jsonl"):
            for one in arrivals:
                row = {"timestamp": round(one.at * 1e3), "input_length": one.input_tokens}
                row |= {"output_length": one.output_tokens}
                file.write(json.dumps(row | {"hash_ids": list(one.blocks)}) + "\n")
            return
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_AZURE)
        for one in arrivals:
            whole, ticks = divmod(round(one.at * 1e7), 10**7)
            moment = (_EPOCH + timedelta(seconds=whole)).strftime("%Y-%m-%d %H:%M:%S")
            writer.writerow([f"{moment}.{ticks:07d}", one.input_tokens, one.output_tokens])


def scale(arrivals: Sequence[Arrival], factor: float, rate: float | None, max_tokens: int | None) -> list[Arrival]:
    """Divides lengths by `factor` and stretches times to a mean rate.

    rate: requests per second; None = as recorded, inf = all at once.  max_tokens: of prompt and output together; longer
    prompts, and then outputs, are cut; None = no limit.
    """
    last = max((one.at for one in arrivals), default=0.0)
    stretch = 1.0 if rate is None or last == 0 else len(arrivals) / rate / last
    scaled = []
    for one in arrivals:
        inputs, outputs = max(1, round(one.input_tokens / factor)), max(1, round(one.output_tokens / factor))
        if max_tokens is not None:
            outputs = min(outputs, max_tokens - 1)
            inputs = min(inputs, max_tokens - outputs)
        block = max(1, round(one.block_tokens / factor))
        scaled.append(Arrival(one.at * stretch, inputs, outputs, one.blocks, block))
    return scaled
