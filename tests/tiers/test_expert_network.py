"""The network that guesses experts from tokens: its windows, what it learns, its file, its command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_recordings import EXPERTS, LAYERS, TOP_K, add_prompts, made_up, one_row

from lynx_rt import ValidationError
from lynx_rt.research.expert_network import ExpertNetwork, forward, main, make_weights, recall, train, windows
from lynx_rt.research.recording import Recording
from lynx_rt.research.tier_simulation import Tier, TierSimulator


def with_prompts(seed: int) -> Recording:
    recording = made_up([6] * 60, seed=0, spread=0.3)  # tokens prefer the same experts in all recordings
    recording.scores += np.random.default_rng(seed).normal(size=recording.scores.shape).astype(np.float32) * 0.3
    add_prompts(recording, [[1, 2]] * 60, [[[[0] * TOP_K] * LAYERS] * 2] * 60)
    return recording


def test_windows() -> None:
    recording = one_row([[0, 1], [0, 2], [3, 1]])
    recording.token = np.array([7, 8, 9], np.int32)
    add_prompts(recording, [[5, 6]], [[[[0], [1]], [[0], [2]]]])
    assert windows(recording, 4, 100).tolist() == [[100, 5, 6, 7], [5, 6, 7, 8], [6, 7, 8, 9]]
    assert windows(recording, 2, 8).tolist() == [[6, 7], [7, 8], [8, 8]]  # token 9 is not known
    recording.prompt_request = recording.prompt_request[:0]
    with pytest.raises(ValidationError, match="network needs the tokens of prompts"):
        windows(recording, 4, 100)


def test_numpy_is_torch_and_does_not_see_padding() -> None:
    torch = pytest.importorskip("torch")
    weights = make_weights(11, 5, LAYERS, 8, 16, EXPERTS, seed=3)
    tokens = np.random.default_rng(0).integers(0, 11, (7, 5))
    tokens[2, :4], tokens[3, :2] = 11, 11
    plain = forward(weights, tokens, np)
    by_torch = forward({n: torch.from_numpy(w) for n, w in weights.items()}, torch.from_numpy(tokens), torch)
    assert plain.shape == (7, LAYERS, EXPERTS) and by_torch.numpy() == pytest.approx(plain, abs=1e-4)
    weights["token"][11] += 1
    assert forward(weights, tokens, np) == pytest.approx(plain, abs=1e-4)


def test_it_learns_what_tokens_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    first, second = with_prompts(1), with_prompts(2)
    network = train(first, hidden=16, ffn=32, window=4, epochs=60)
    assert np.mean(recall(network, second)) > 0.75  # chance: 1/4
    network.save(tmp_path / "n.npz")
    text = f"network:file={tmp_path / 'n.npz'}"
    simulator = TierSimulator(second, Tier(expert_bytes=1), batch=1)
    found = {name: simulator.run("topk", "plec", 4, name) for name in (text, "popularity")}
    assert found[text].recall > 0.75 and found[text].recall > found["popularity"].recall + 0.2
    assert np.array_equal(ExpertNetwork.load(tmp_path / "n.npz").scores(second), network.scores(second))
    with pytest.raises(ValidationError, match="the network has 3 layers of 12 experts, the recording"):
        network.scores(one_row([[0, 1]]))
    with pytest.raises(ValidationError, match="training needs rows"):
        train(made_up([]))
    first.save(tmp_path / "r.npz")
    argv = [str(tmp_path / "r.npz"), "--out", str(tmp_path / "m.npz"), "--test", str(tmp_path / "r.npz")]
    assert main([*argv, "--epochs", "1", "--ffn", "8", "--hidden", "4", "--window", "2"]) == 0
    assert "r.npz: finds 0." in capsys.readouterr().out
    assert main([str(tmp_path / "n.npz"), "--out", str(tmp_path / "m.npz")]) == 1
    assert "is no recording" in capsys.readouterr().err
