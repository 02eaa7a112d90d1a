"""What simulations of experts on the disk run beside policies of residents: predictors, orders of admission, quotas."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from made_recordings import EXPERTS, LAYERS, TIER, TOP_K, made_up

from lynx_rt import ValidationError
from lynx_rt.research.admission import admitted_steps, parse_admission, routes
from lynx_rt.research.predictors import parse_predictor, predict
from lynx_rt.research.recording import Recording
from lynx_rt.research.simulate import batched_steps
from lynx_rt.research.tier_simulation import Tier, TierSimulator

# Predictors


def test_predictors_do_not_see_what_they_predict() -> None:
    """What is guessed for a row does not change with the row's own routing of that layer, nor with later rows."""
    recording = made_up([6, 8, 7, 9, 5, 8])
    train = recording.request < 3
    last = np.flatnonzero(~train)[-1]
    for text in ("popularity", "token_table", "ewma", "transition", "linear", "next_router"):
        before = predict(recording, parse_predictor(text), train)
        changed = made_up([6, 8, 7, 9, 5, 8])
        changed.scores[last, LAYERS - 1] = -changed.scores[last, LAYERS - 1]
        after = predict(changed, parse_predictor(text), train)
        assert before is not None and after is not None
        assert np.array_equal(before, after), text
        assert before.shape == recording.scores.shape
        one_layer_ahead = np.isinf(before[:, 0]).all()
        assert one_layer_ahead != parse_predictor(text).known_at_start


def test_predictors_learn() -> None:
    recording = made_up([9] * 40, spread=0.7)
    simulator = TierSimulator(recording, Tier(expert_bytes=1), batch=1)
    recall = {
        text: simulator.run("topk", "none", 1, text).recall for text in ("popularity", "token_table", "next_router")
    }
    assert recall["token_table"] > recall["popularity"] + 0.2 and recall["next_router"] > 0.6
    everything = simulator.run("topk", "none", 1, f"popularity:n={EXPERTS}")
    assert everything.recall == 1 and everything.precision == pytest.approx(TOP_K / EXPERTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("guess", "expected one of none, popularity"),
        ("ewma:n=0", "unexpected 'n=0'"),
        ("ewma:decay=1", "unexpected 'decay=1'"),
        ("linear:decay=0.5", "unexpected 'decay=0.5'"),
        ("none:n=1", "unexpected 'n=1'"),
        ("transition:d=2", "d must be 1"),
        ("external", "file=SCORES.npy"),
        ("prefill:decay=1", "unexpected 'decay=1'"),
        ("prefill", "prefill needs the experts of prompts, which the recording lacks"),
        ("network", "file=NETWORK.npz"),
        ("network:file=/no/such.npz", "/no/such.npz is no network"),
        ("external:file=/no/such.npy", "/no/such.npy"),
        ("ewma:n=13", r"n: expected 1\.\.12, got 13"),
    ],
)
def test_bad_predictors(text: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TierSimulator(made_up([4, 4, 4, 4]), Tier(expert_bytes=1), batch=1).run("topk", "lfu", 4, text)


def test_recordings_that_lack_what_predictors_need(tmp_path: Path) -> None:
    recording = made_up([4, 4, 4, 4])
    recording.token, recording.next_scores = recording.token[:0], recording.next_scores[:, :0]
    recording.save(tmp_path / "r.npz")
    simulator = TierSimulator(Recording.load(tmp_path / "r.npz"), Tier(expert_bytes=1), batch=1)
    for text in ("token_table", "next_router"):
        with pytest.raises(ValidationError, match=f"{text} needs .* which the recording lacks"):
            simulator.run("topk", "lfu", 4, text)
    np.save(tmp_path / "s.npy", np.zeros((2, 2)))
    with pytest.raises(ValidationError, match="expected floats"):
        simulator.run("topk", "lfu", 4, f"external:file={tmp_path / 's.npy'}")
    for text, policy in (("popularity", "lfu"), ("none", "static")):
        with pytest.raises(ValidationError, match="nothing to learn from"):
            TierSimulator(recording, TIER, batch=1).run("topk", policy, 4, text)


# Admission


def test_admission() -> None:
    """Each request once, its rows in order and without a gap, no place free while one waits; alike requests run together."""
    recording = made_up([5, 9, 2, 7, 4, 8, 3, 3, 6])
    requests = np.unique(recording.request)
    recording.prompt_request = np.repeat(requests, 3)
    recording.prompt_token = np.concatenate(
        [[7 + request % 2, 7 + request % 2, 5] for request in requests.astype(int)]
    ).astype(np.int32)
    for window, skips in ((64, 64), (2, 1), (3, 64)):
        order, offsets = admitted_steps(recording, 2, parse_admission(f"affinity:window={window},skips={skips}"))
        assert sorted(order.tolist()) == list(range(len(recording)))
        steps = [order[a:b] for a, b in itertools.pairwise(offsets)]
        begin, seen = {}, {}
        for step, rows in enumerate(steps):
            for row in rows:
                request = int(recording.request[row])
                begin.setdefault(request, step)
                assert seen.setdefault(request, -1) < row
                seen[request] = row
        lengths = np.bincount(recording.request.astype(int))
        for request, first in begin.items():
            assert all(request in recording.request[rows] for rows in steps[first : first + lengths[request]])
        assert all(len(rows) == 2 for rows in steps[: max(begin.values())])
        pairs = [set((recording.request[rows] % 2).tolist()) for rows in steps if len(rows) == 2]
        if window == 64:  # request 0 starts alone with 2, which is as it; the odd ones come when no even one waits
            alike = sum(len(pair) == 1 for pair in pairs)
            plain = batched_steps(recording.request, 2)
            in_turn = sum(
                len(set((recording.request[plain[0][a:b]] % 2).tolist())) == 1 and b - a == 2
                for a, b in itertools.pairwise(plain[1])
            )
            assert alike > in_turn
    for text in ("affinity:window=1", "own:window=1", "first_come"):
        steps = admitted_steps(recording, 2, parse_admission(text))
        assert all(np.array_equal(a, b) for a, b in zip(steps, batched_steps(recording.request, 2), strict=True))
    recording.prompt_request = recording.prompt_request[:-3]
    with pytest.raises(ValidationError, match="needs the prompts"):
        admitted_steps(recording, 2, parse_admission("affinity"))


def test_admission_makes_unions_smaller() -> None:
    recording = made_up([4] * 60, spread=0.5)
    used = {
        text: TierSimulator(recording, Tier(expert_bytes=1, measured=1.0), batch=4, admission=text)
        .run("topk", "lfu", 4)
        .used.mean()
        for text in ("first_come", "predicted:window=16", "own")
    }
    assert used["own"] < used["first_come"] and used["predicted:window=16"] < used["first_come"]
    assert routes(recording, parse_admission("own")).sum() == len(recording) * LAYERS * TOP_K


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lifo", "expected one of first_come"),
        ("first_come:skips=1", "'skips=1'"),
        ("own:skips=0", "'skips=0'"),
        ("own:w=1", "'w=1'"),
    ],
)
def test_bad_admissions(text: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TierSimulator(made_up([3, 3]), TIER, batch=2, admission=text)
