"""Arrivals, traces and prompts of load tests."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lynx_rt import LynxError, ValidationError
from lynx_rt.bench.prompts import PromptSource, prompt_source
from lynx_rt.bench.traces import (
    FITS,
    Arrival,
    arrival_times,
    random_lengths,
    read_trace,
    scale,
    synthesize,
    write_trace,
)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_are_gamma(burstiness: float) -> None:
    """Mean 1 / rate exactly, and the coefficient of variation of a gamma distribution of that shape.

    The sample's CV from n gaps has a standard error of about cv * sqrt((1/2 + cv^2) / n) and more for heavy tails: 6 % of it is
    more than five times that at n = 40,000 for the shapes here.
    """
    count, rate = 40_000, 8.0
    times = np.asarray(arrival_times(count, rate, burstiness, np.random.default_rng(3)))
    gaps = np.diff(times, prepend=0.0)
    assert times[-1] == pytest.approx(count / rate) and (gaps >= 0).all()
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.06)
    skewness = (((gaps - gaps.mean()) / gaps.std()) ** 3).mean()
    assert skewness == pytest.approx(2 * burstiness**-0.5, rel=0.25)


def test_poisson_counts() -> None:
    """Arrivals in windows of a Poisson process have a variance equal to their mean. The ratio's standard error is sqrt(2 / 2000)."""
    times = np.asarray(arrival_times(20_000, 10.0, 1.0, np.random.default_rng(5)))
    counts = np.bincount(times.astype(int), minlength=2001)[:2000]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=5 * (2 / 2000) ** 0.5)


def test_arrivals_at_the_ends() -> None:
    rng = np.random.default_rng(0)
    assert arrival_times(0, 1.0, 1.0, rng) == []
    assert arrival_times(3, math.inf, 1.0, rng) == [0.0, 0.0, 0.0]
    assert arrival_times(4, 2.0, math.inf, rng) == [0.5, 1.0, 1.5, 2.0]
    assert arrival_times(1, 4.0, 1.0, rng) == [0.25]


def test_random_lengths() -> None:
    rng = np.random.default_rng(0)
    assert random_lengths(4, 10, 0.0, rng) == [10] * 4
    lengths = random_lengths(2000, 10, 0.5, rng)
    assert set(lengths) == set(range(5, 16))
    assert min(random_lengths(100, 1, 0.9, rng)) == 1


@pytest.mark.parametrize("kind", FITS)
def test_drawn_traces_have_the_fits_quantiles(kind: str) -> None:
    """The medians of logarithms, whose standard error is 1.25 * sigma / sqrt(n); cut lengths leave medians alone."""
    fit, count = FITS[kind], 20_000
    arrivals = synthesize(kind, count, np.random.default_rng(1))
    for name, (mu, sigma), most in zip(("input_tokens", "output_tokens"), (fit.input, fit.output), fit.most):
        lengths = np.asarray([getattr(one, name) for one in arrivals])
        rounding = 0.5 / math.exp(mu)
        assert np.median(np.log(lengths)) == pytest.approx(mu, abs=5 * 1.25 * sigma / count**0.5 + rounding)
        assert lengths.min() >= 1 and lengths.max() == most
    assert arrivals[-1].at == pytest.approx(count / fit.rate)
    assert arrivals == synthesize(kind, count, np.random.default_rng(1))
    assert arrivals != synthesize(kind, count, np.random.default_rng(2))
    gaps = np.diff([one.at for one in synthesize(kind, 2000, np.random.default_rng(1), math.inf)])
    assert np.ptp(gaps) < 1e-6


def test_unknown_kind() -> None:
    with pytest.raises(ValidationError, match="azure-code, azure-conv, got 'x'"):
        synthesize("x", 1, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["trace.csv", "trace.jsonl"])
def test_traces_round_trip(tmp_path: Path, name: str) -> None:
    arrivals = synthesize("azure-conv", 100, np.random.default_rng(0))
    if name.endswith("jsonl"):
        arrivals = [Arrival(one.at, one.input_tokens, one.output_tokens, (1, 2)) for one in arrivals]
    write_trace(tmp_path / name, arrivals)
    read = read_trace(tmp_path / name)
    tick = 1e-3 if name.endswith("jsonl") else 1e-6
    assert [(one.input_tokens, one.output_tokens, one.blocks) for one in read] == [
        (one.input_tokens, one.output_tokens, one.blocks) for one in arrivals
    ]
    for one, other in zip(read, arrivals):
        assert one.at == pytest.approx(other.at - arrivals[0].at, abs=tick)


def test_published_forms(tmp_path: Path) -> None:
    """A line of Azure's 2023 file, one of 2024's with its offset, and one of Mooncake's."""
    file = tmp_path / "azure.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.1805900,396,109\n"
    )
    assert read_trace(file) == [Arrival(0.0, 374, 44), Arrival(pytest.approx(0.5), 396, 109)]
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n")
    assert read_trace(file) == [Arrival(0.0, 2162, 5)]
    file = tmp_path / "mooncake.jsonl"
    file.write_text('{"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}\n')
    assert read_trace(file) == [Arrival(0.0, 6758, 500, (0, 1, 2))]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no requests"),
        ("TIMESTAMP,Context\n2023-11-16 18:15:46,1\n", "line 2: expected TIMESTAMP, ContextTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,x,2\n", "line 2"),
        ('{"timestamp": 1}\n', "line 1: expected timestamp, input_length"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}\n{"timestamp"\n', "line 2"),
    ],
)
def test_bad_traces(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(LynxError, match=match):
        read_trace(tmp_path / "t")


def test_missing_trace(tmp_path: Path) -> None:
    with pytest.raises(LynxError, match="No such file"):
        read_trace(tmp_path / "none")


def test_scale() -> None:
    arrivals = [Arrival(0.0, 1600, 320, (7,)), Arrival(8.0, 10, 1)]
    assert scale(arrivals, 16, None, None) == [Arrival(0.0, 100, 20, (7,), 32), Arrival(8.0, 1, 1, (), 32)]
    assert [one.at for one in scale(arrivals, 1, 4.0, None)] == [0.0, 0.5]
    assert [one.at for one in scale(arrivals, 1, math.inf, None)] == [0.0, 0.0]
    [one, _] = scale(arrivals, 1, None, 1000)
    assert (one.input_tokens, one.output_tokens) == (680, 320)
    [one, _] = scale(arrivals, 1, None, 100)
    assert (one.input_tokens, one.output_tokens) == (1, 99)


def test_random_prompts() -> None:
    source = PromptSource(10)
    tokens = source.tokens(1000, np.random.default_rng(0))
    assert len(tokens) == 1000 and set(tokens) == set(range(10))
    with pytest.raises(LynxError, match="need --tokenizer"):
        source.text([1])


def test_equal_blocks_are_equal_prefixes() -> None:
    """Mooncake's hash_ids: prompts share exactly the blocks that they share ids of."""
    source, rng = PromptSource(1000), np.random.default_rng(0)
    a = source.with_blocks(50, (1, 2, 3), 16, 0, rng)
    b = source.with_blocks(50, (1, 2, 4), 16, 0, rng)
    c = source.with_blocks(40, (1, 2, 3), 16, 0, rng)
    assert len(a) == 50 and a[:32] == b[:32] and a[32:48] != b[32:48] and a[:40] == c
    assert source.with_blocks(50, (1,), 16, 1, rng)[:16] != a[:16]


def test_prompts_from_files(tmp_path: Path, nano_path: str) -> None:
    rows = [{"task": "a", "prompt": "Q: 1 + 1\nA:", "answer": " 2"}, {"task": "b", "prompt": "x"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = prompt_source(nano_path, None, str(tmp_path))
    rng = np.random.default_rng(0)
    texts = {source.text(source.tokens(60, rng))[:12] for _ in range(20)}
    assert texts == {"Q: 1 + 1\nA: ", "x\nx\nx\nx\nx\nx\n"}
    assert {len(source.tokens(n, rng)) for n in (1, 60)} == {1, 60}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((None, None, None), "need --tokenizer or --vocab-size"),
        ((None, 10, "x"), "--prompts needs --tokenizer"),
        (("/no/such", None, None), "--tokenizer /no/such: there is no"),
    ],
)
def test_bad_sources(arguments: tuple, match: str) -> None:
    with pytest.raises(LynxError, match=match):
        prompt_source(*arguments)


def test_bad_prompt_files(tmp_path: Path, nano_path: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(LynxError, match="line 2: expected"):
        prompt_source(nano_path, None, str(file))
    file.write_text("")
    with pytest.raises(LynxError, match="no prompts"):
        prompt_source(nano_path, None, str(file))
