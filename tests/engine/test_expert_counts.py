"""How often each expert is read: Engine.expert_counts()."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lynx_rt import Engine, SamplingParams, shipped_model
from lynx_rt.research.recording import own_experts, take_recording

PROMPTS = [f"Q: {a} + {a * 7 % 23} = ? A:" for a in range(3, 12)]
OPTIONS = {"max_num_seqs": 4, "enable_prefix_caching": False, "num_threads": 1}


def steps_per_expert(ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns [layers, 32] the number of steps in which ids [rows, layers, k] name each expert."""
    counts = np.zeros((ids.shape[1], 32), np.int64)
    for begin, end in itertools.pairwise(offsets):
        for layer in range(ids.shape[1]):
            used = np.unique(ids[begin:end, layer])
            counts[layer, used[used >= 0]] += 1
    return counts


@pytest.mark.parametrize("selection", ["topk", "lynx", "oea:k0=1", "top1"])
def test_counts_are_those_of_the_recorded_steps(selection: str) -> None:
    with Engine(shipped_model(), expert_selection=selection, record_router_logits=True, **OPTIONS) as engine:
        before = engine.expert_counts()
        assert before.steps == before.rows == 0 and before.read.shape == (8, 32) and not before.read.any()
        engine.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True), use_tqdm=False)
        counts, stats, recording = engine.expert_counts(), engine.stats(), take_recording(engine)
        offsets = recording.step_offsets
        assert (counts.read == steps_per_expert(recording.routed_experts, offsets)).all()
        assert (counts.wanted == steps_per_expert(own_experts(recording), offsets)).all()
        assert (counts.steps, counts.rows) == (stats.decode_steps, stats.decode_rows)
        assert counts.read.sum(axis=1).tolist() == [layer.active for layer in stats.layers]
        assert counts.wanted.sum(axis=1).tolist() == [layer.union_before for layer in stats.layers]
        assert (selection == "topk") == (counts.read == counts.wanted).all()
        engine.reset_stats()
        assert engine.expert_counts().steps == 0 and not engine.expert_counts().wanted.any()
        assert counts.read.any()  # a copy
