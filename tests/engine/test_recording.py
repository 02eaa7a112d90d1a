"""Recorded routing: the experts of every token, however it was computed, and router logits, which give a simulation the same results."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models as tm
import torch
from driving import Job, engine, params, record, run
from driving import Result as BaseResult

from lynx_rt import Engine, SamplingParams, ValidationError
from lynx_rt.research.recording import Recording, own_experts
from lynx_rt.research.simulate import simulate

MODELS = ["mixed", "many"]  # one with a dense layer, one with 64 experts
POLICIES = [
    "topk",
    "lynx",
    "lynx:alpha=2,beta=3,theta=1.5",
    "oea:k0=1",
    "xshare:m=5,k0=1",
    "des_vote:m=5",
    "cover:delta=0.2",
    "capacity:factor=1",
    "top_j:j=2",
    "oea:k0=2@0=topk@1=lynx:alpha=2",
]
F32_BOUND = 1e-4  # of the row's largest value: tests/model/test_transformers_parity.py


class Result(BaseResult):
    """A result with the experts of all positions, joined as a caller has to join them."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[np.ndarray] = []

    @property
    def experts(self) -> np.ndarray:
        return np.concatenate(self.pieces)


def record_experts(results, outputs):
    for o in outputs:
        r = results[o.request_id]
        if o.num_preemptions > r.num_preemptions:
            r.pieces = []
        r.pieces.append(o.routed_experts)
    record(results, outputs)


def run_recorded(e, jobs):
    return run(e, jobs, result=Result, record=record_experts)


def jobs_of(model, count=6, tokens=12, **options):
    rng = np.random.default_rng(3)
    vocab = tm.ALL[model].vocab
    shared = rng.integers(0, vocab, 40).tolist()
    prompts = [rng.integers(0, vocab, n).tolist() for n in (1, 5, 33)]
    prompts += [shared[:20], [*shared[:34], 1], [*shared, 2, 3]]
    return [Job(p, {"max_tokens": tokens + 2 * i} | options) for i, p in enumerate(prompts[:count])]


def layers_of(model):
    t = tm.ALL[model]
    return [layer for layer in range(t.layers) if layer not in t.mlp_only]


def moe_inputs(path, ids):
    """float64 [MoE layers][tokens, H]: what the experts of each layer work on in transformers; and the router weights."""
    model = tm.reference(path, "float64")
    inputs, weights = [], []
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0].reshape(-1, args[0].shape[-1])))
            weights.append(layer.mlp.gate.weight)
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    return inputs, weights


def same_sets(a, b):
    return np.array_equal(np.sort(a, -1), np.sort(b, -1))


# The experts of every token


@pytest.mark.parametrize("model", ["plain", "mixed", "groups3"])
def test_experts_are_those_of_transformers(tiny_path, model):
    """Wherever the k-th and the next score are further apart than rounding can move them; float32 models."""
    path, k = tiny_path(model), tm.ALL[model].experts[1]
    e = engine(path, enable_return_routed_experts=True, max_num_batched_tokens=16)
    job = jobs_of(model)[2]
    [result] = run_recorded(e, [job])
    ids = job.prompt + result.tokens
    assert result.experts.dtype == np.int16 and result.experts.shape == (len(ids) - 1, len(layers_of(model)), k)
    sure = 0
    for layer, (x, weight) in enumerate(zip(*moe_inputs(path, ids[:-1]))):
        scores = (x @ weight.T).detach().numpy()
        order = np.argsort(-scores, axis=1)
        ranked = np.take_along_axis(scores, order, 1)
        gaps = -np.diff(ranked[:, : k + 1], axis=1)
        clear = (gaps > 2 * F32_BOUND * np.abs(scores).max(1, keepdims=True)).all(1)
        assert (result.experts[clear, layer] == order[clear, :k]).all()
        sure += clear.sum()
    assert sure > 0.9 * len(layers_of(model)) * (len(ids) - 1)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 16},
        {"enable_mixed_chunk": False},
        {"block_size": 4, "max_num_seqs": 3},
        {"record_router_logits": True},
        {"num_threads": 2},
    ],
    ids=str,
)
def test_experts_do_not_depend_on_the_company(tiny_path, model, options):
    path, jobs = tiny_path(model), jobs_of(model)
    options = {"enable_return_routed_experts": True} | options
    together = run_recorded(engine(path, **options), jobs)
    for job, got in zip(jobs, together):
        [expected] = run_recorded(engine(path, enable_return_routed_experts=True, enable_prefix_caching=False), [job])
        assert got.tokens == expected.tokens and len(got.experts) == len(job.prompt) + len(got.tokens) - 1
        assert np.array_equal(got.experts, expected.experts)


@pytest.mark.parametrize("model", MODELS)
def test_experts_of_cached_tokens(tiny_path, model):
    path, jobs = tiny_path(model), jobs_of(model)
    e = engine(path, enable_return_routed_experts=True, block_size=8)
    first, again = run_recorded(e, jobs), run_recorded(e, jobs)
    assert [r.num_cached_tokens for r in again][-1] >= 40
    for a, b in zip(first, again):
        assert np.array_equal(a.experts, b.experts)


def test_experts_after_preemption(tiny_path):
    model = "many"
    path, jobs = tiny_path(model), jobs_of(model, tokens=40)
    plenty = run_recorded(engine(path, enable_return_routed_experts=True), jobs)
    per_token = engine(path).model_info()["kv_bytes_per_token"]
    e = engine(
        path, enable_return_routed_experts=True, block_size=8, max_model_len=120, kv_cache_memory_bytes=160 * per_token
    )
    scarce = run_recorded(e, jobs)
    assert sum(r.num_preemptions for r in scarce) > 0
    for a, b in zip(plenty, scarce):
        assert a.tokens == b.tokens and np.array_equal(a.experts, b.experts)


def test_preemption_through_the_python_engine(nano_path):
    """Positions that are computed twice are reported once."""
    prompts = [f"Q: {n} times 22 = ?\nA:" for n in range(12, 18)]
    options = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    with Engine(nano_path, enable_return_routed_experts=True, num_threads=1) as e:
        plenty = e.generate(prompts, options)
        needed = e._core.model_info()["kv_bytes_per_token"] * 150
    with Engine(
        nano_path, enable_return_routed_experts=True, num_threads=1, max_model_len=100, kv_cache_memory_bytes=needed
    ) as e:
        scarce = e.generate(prompts, options)
        assert e.stats().preemptions > 0
    for a, b in zip(plenty, scarce):
        assert np.array_equal(a.outputs[0].routed_experts, b.outputs[0].routed_experts)


def test_dropped_experts_are_minus_one(tiny_path):
    e = engine(tiny_path("many"), enable_return_routed_experts=True, expert_selection="top_j:j=3")
    for job, result in zip(jobs_of("many"), run_recorded(e, jobs_of("many"))):
        # The prompt, and rows of steps with prompts in them, keep their routing: the policy acts in steps that only decode.
        dropped = (result.experts[:, :, 3:] == -1).all((1, 2))
        assert (result.experts[:, :, :3] >= 0).all() and (result.experts[~dropped] >= 0).all()
        assert not dropped[: len(job.prompt)].any() and dropped[len(job.prompt) :].sum() >= 10


def test_off_by_default(tiny_path):
    e = engine(tiny_path("many"))
    e.add_request([1, 2], params())
    assert all(o.routed_experts is None for o in e.step())
    with pytest.raises(ValidationError, match="record_router_logits"):
        e.take_router_logits()


def test_a_dense_model_has_none(tiny_path):
    e = engine(tiny_path("dense"), enable_return_routed_experts=True, record_router_logits=True)
    e.add_request([1, 2], params(max_tokens=3))
    while e.has_unfinished():
        assert all(o.routed_experts is None for o in e.step())
    assert e.take_router_logits()["scores"].shape == (2, 0, 0)


def test_through_the_python_engine(nano_path):
    """n completions, an end by a stop string (which only Python sees), by an abort, and by the length."""
    with Engine(nano_path, enable_return_routed_experts=True, num_threads=1) as e:
        [out] = e.generate(
            "Q: 12 times 22 = ?\nA:", SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=7, ignore_eos=True)
        )
        for completion in out.outputs:
            assert completion.routed_experts.shape == (len(out.prompt_token_ids) + 6, 8, 4)
        prompt = len(out.prompt_token_ids)
        first = out.outputs[0].routed_experts
        assert all(np.array_equal(c.routed_experts[:prompt], first[:prompt]) for c in out.outputs)
        [out] = e.generate("Q: 12 times 22 = ?\nA:", SamplingParams(temperature=0.0, stop=["6"]))
        assert out.outputs[0].finish_reason == "stop" and out.outputs[0].stop_reason == "6"
        assert len(out.outputs[0].routed_experts) == prompt + len(out.outputs[0].token_ids) - 1
        stream = e.stream("Q: 12 times 22 = ?\nA:", SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True))
        assert next(stream).outputs[0].routed_experts is None
        stream.close()
    with Engine(nano_path, num_threads=1) as e:
        assert e.generate("x", SamplingParams(max_tokens=2))[0].outputs[0].routed_experts is None


# Router logits


def recorded(path, selection, jobs, **options):
    """Returns (recording, stats, results) of an engine that ran all jobs."""
    e = engine(path, record_router_logits=True, expert_selection=selection, **options)
    results = run(e, jobs)
    raw = e.take_router_logits()
    return Recording(model=path, selection=e.expert_selection(), **raw), e.stats(), results


@pytest.mark.parametrize("model", ["plain", "mixed"])
def test_logits_are_those_of_transformers(tiny_path, model):
    path, job = tiny_path(model), jobs_of(model)[2]
    recording, _, [result] = recorded(path, "topk", [job])
    ids = job.prompt + result.tokens
    assert recording.position.tolist() == list(range(len(job.prompt), len(ids) - 1))
    assert recording.layers.tolist() == layers_of(model) and recording.num_model_layers == tm.ALL[model].layers
    for layer, (x, weight) in enumerate(zip(*moe_inputs(path, ids[:-1]))):
        expected = (x @ weight.T).detach().numpy()[len(job.prompt) :]
        error = np.abs(recording.scores[:, layer] - expected).max(1)
        assert (error <= F32_BOUND * np.abs(expected).max(1)).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_simulator_counts_what_the_engine_counted(tiny_path, model, policy):
    """Batches that grow and shrink, prompts in between, one exact request: all counts of all layers, and every id."""
    jobs = jobs_of(model, tokens=9)
    jobs[1].options["exact"] = True
    jobs[3].arrival, jobs[4].arrival = 4, 7
    recording, stats, _ = recorded(tiny_path(model), policy, jobs)
    assert len(recording) == stats["decode_rows"] and len(recording.step_offsets) - 1 == stats["decode_steps"] > 5
    assert recording.exact.any() and not recording.exact.all()
    result = simulate(recording, policy)
    counted = [{name: getattr(layer, name) for name in stats["layers"][0]} for layer in result.layers]
    assert counted == stats["layers"]
    assert np.array_equal(result.routed_experts, recording.routed_experts)
    if policy != "topk":
        assert not same_sets(recording.routed_experts, own_experts(recording)), "the policy did nothing"


def test_logits_and_experts_of_a_row_belong_together(tiny_path):
    """Every row is found again in the experts of its request, at its position."""
    path, jobs = tiny_path("many"), jobs_of("many")
    e = engine(path, record_router_logits=True, enable_return_routed_experts=True, expert_selection="oea:k0=2")
    results = run_recorded(e, jobs)
    raw = e.take_router_logits()
    assert len(raw["step"]) > 20 and set(raw["request"].tolist()) == set(range(1, len(jobs) + 1))
    for request, position, experts in zip(raw["request"], raw["position"], raw["routed_experts"]):
        assert np.array_equal(results[int(request) - 1].experts[position], experts)


def test_logits_are_handed_over_once(tiny_path):
    path, jobs = tiny_path("many"), jobs_of("many")
    e = engine(path, record_router_logits=True)
    run(e, jobs[:2])
    first = e.take_router_logits()
    assert e.take_router_logits()["scores"].shape == (0, 2, 64)
    run(e, jobs[2:])
    second = e.take_router_logits()
    assert len(first["step"]) > 0 and second["step"][0] == first["step"][-1] + 1
    whole = recorded(path, "topk", jobs[:2])[0]
    assert np.array_equal(first["scores"], whole.scores)


def test_recording_changes_no_result(tiny_path):
    path, jobs = tiny_path("mixed"), jobs_of("mixed", logprobs=2)
    plain = run(engine(path, expert_selection="lynx"), jobs)
    both = run(
        engine(path, expert_selection="lynx", record_router_logits=True, enable_return_routed_experts=True), jobs
    )
    assert [r.bits for r in plain] == [r.bits for r in both]


@pytest.mark.parametrize(
    "policy", ["lynx:refill=0,damp=0", "oea:k0=2"]
)  # ids are replayed; weights have their full mass
def test_replay_of_a_recording(tiny_path, tmp_path, policy):
    """Steps of full batches under a policy, and again under replay of what it chose: the same bits."""
    path, rng = tiny_path("many"), np.random.default_rng(5)
    jobs = [Job(rng.integers(0, 71, 9).tolist(), {"max_tokens": 13, "logprobs": 1}) for _ in range(5)]
    recording, stats, results = recorded(path, policy, jobs)
    file = tmp_path / "experts.safetensors"
    assert recording.save_routed_experts(file, 5) == 60 == len(recording)
    with pytest.raises(ValidationError, match="4 rows"):
        recording.save_routed_experts(file, 4)
    e = engine(path, expert_selection=f"replay:file={file}")
    assert [r.bits for r in run(e, jobs)] == [r.bits for r in results]
    for name in ("active", "union_before", "remapped_pairs"):
        assert [layer[name] for layer in e.stats()["layers"]] == [layer[name] for layer in stats["layers"]]
    simulated = simulate(recording, f"replay:file={file}")
    assert [layer.active for layer in simulated.layers] == [layer["active"] for layer in stats["layers"]]
