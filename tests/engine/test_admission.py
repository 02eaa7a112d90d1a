"""Orders of admission in the engine: results do not depend on them, simulations foresee them, and the default is the order of arrival."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lynx_rt import Engine, SamplingParams, ValidationError, shipped_model
from lynx_rt.research.recording import Recording, take_recording
from lynx_rt.research.simulate import simulate, steps_of

KINDS = ("Q: {} times {} = ?\nA:", "Q: Sort in descending order: {}, {}, 31, 8\nA:", "Q: What is {} mod {}?\nA:")
PROMPTS = [KINDS[i % 3].format(10 + 7 * i % 90, 2 + i) for i in range(36)]
PARAMS = [SamplingParams(temperature=0.0, max_tokens=2 + 5 * i % 7, ignore_eos=True) for i in range(36)]


def run(admission: str | None, **options: Any) -> tuple[list[list[int]], Recording, Any]:
    options = {"max_num_seqs": 4, "enable_mixed_chunk": False, "record_router_logits": True, "seed": 1} | options
    if admission is not None:
        options["admission"] = admission
    with Engine(shipped_model(), enable_prefix_caching=False, **options) as engine:
        outputs = engine.generate(PROMPTS, PARAMS, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs], take_recording(engine), engine.stats()


def steps(recording: Recording, order: np.ndarray, offsets: np.ndarray) -> list[set[tuple[int, int]]]:
    rows = list(zip(recording.request.tolist(), recording.position.tolist(), strict=True))
    return [{rows[row] for row in order[a:b]} for a, b in itertools.pairwise(offsets)]


def recorded_steps(recording: Recording) -> list[set[tuple[int, int]]]:
    return steps(recording, np.arange(len(recording)), recording.step_offsets)


def test_engine_and_simulation_admit_alike() -> None:
    tokens, plain, stats = run(None)
    assert recorded_steps(plain) == steps(plain, *steps_of(plain, 4, None, "first_come"))
    active = {}
    for admission in ("affinity", "affinity:window=5", "affinity:skips=2", "affinity:window=9,skips=4"):
        same_tokens, recording, _ = run(admission)
        assert same_tokens == tokens, "a request's greedy tokens depend on the order"
        foreseen = steps_of(plain, 4, None, admission)
        assert recorded_steps(recording) == steps(plain, *foreseen) != recorded_steps(plain)
        active[admission] = simulate(plain, "topk", batch=4, admission=admission).active
        assert recorded_steps(run(admission)[1]) == recorded_steps(recording)
    assert active["affinity"] < 0.97 * simulate(plain, "topk", batch=4).active
    for admission in ("first_come", "affinity:skips=0", "affinity:window=1"):
        same_tokens, recording, same_stats = run(admission)
        assert same_tokens == tokens and recorded_steps(recording) == recorded_steps(plain)
        assert same_stats.layers == stats.layers


def test_recordings_have_prompts() -> None:
    _, recording, _ = run(None)
    with Engine(shipped_model()) as engine:
        prompts = [engine.encode(prompt) for prompt in PROMPTS]
    numbers = np.unique(recording.request)
    assert [recording.prompt_token[recording.prompt_request == number].tolist() for number in numbers] == prompts


@pytest.mark.parametrize(
    ("admission", "said"),
    [
        ("last", "expected first_come or affinity"),
        ("affinity:skips=x", "skips: expected"),
        ("affinity:age=1", "keys window"),
    ],
)
def test_wrong_admissions(admission: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        Engine(shipped_model(), admission=admission)
    assert caught.value.field == "admission"
