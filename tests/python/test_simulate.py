"""Simulation of recordings: forming of batches, policies that act as in an engine step by step, files of recordings, the commands."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_rt import _C, Engine, ValidationError, _C_testing
from lynx_rt.cli.main import main
from lynx_rt.research import recording as recording_module
from lynx_rt.research.recording import Recording, own_experts
from lynx_rt.research.simulate import batched_steps, simulate

TASKS = Path(__file__).parents[2] / "bench" / "tasks"
LAYERS, EXPERTS, TOP_K = 3, 13, 3


def made_up(lengths: list[int], together: int = 4, seed: int = 0) -> Recording:
    """Makes requests of these lengths, decoded `together` at a time, with random scores; 2 of 5 model layers are dense."""
    rng = np.random.default_rng(seed)
    order, offsets = batched_steps(np.repeat(np.arange(len(lengths)), lengths), together)
    rows = len(order)
    return Recording(
        model="made up",
        selection="topk",
        num_model_layers=5,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        layers=np.array([0, 2, 3], np.int32),
        scores=rng.normal(size=(rows, LAYERS, EXPERTS)).astype(np.float32),
        routed_experts=np.zeros((rows, LAYERS, TOP_K), np.int16),
        step=np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)),
        request=np.repeat(np.arange(len(lengths)), lengths)[order].astype(np.uint64) + 7,
        position=np.arange(rows, dtype=np.int32),
        exact=(rng.random(rows) < 0.2).astype(np.uint8),
    )


# Batches


@settings(max_examples=100)
@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 9), st.none() | st.integers(0, 5))
def test_batched_steps(lengths: list[int], batch: int, seed: int | None) -> None:
    """Each row once; of a request one row a step, in order, without a gap; and no slot is free while a request waits."""
    request = np.random.default_rng(1).permutation(np.repeat(np.arange(len(lengths)), lengths))
    order, offsets = batched_steps(request, batch, seed)
    assert sorted(order.tolist()) == list(range(sum(lengths)))
    steps = [order[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    sizes = [len(step) for step in steps]
    assert all(0 < size <= batch for size in sizes)
    begin = {}
    for index in range(len(lengths)):
        at = [s for s, step in enumerate(steps) for row in step if request[row] == index]
        rows = [row for step in steps for row in step if request[row] == index]
        assert at == list(range(at[0], at[0] + lengths[index])) and rows == sorted(rows)
        begin[index] = at[0]
    last = max(begin.values(), default=0)
    assert all(size == batch for size in sizes[:last])


def test_requests_start_in_the_order_of_the_recording() -> None:
    order, offsets = batched_steps([5, 5, 2, 2, 9, 9, 1], 2)
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5] and offsets.tolist() == [0, 2, 4, 6, 7]
    # Request 2 takes the slot that request 0 leaves, before that of request 1: capacity sees rows in this order.
    assert batched_steps([0, 1, 1, 1, 2, 2], 2)[0].tolist() == [0, 1, 4, 2, 5, 3]
    shuffled = {tuple(batched_steps([5, 5, 2, 2, 9, 9, 1], 2, seed)[0].tolist()) for seed in range(8)}
    assert len(shuffled) > 3


# Policies


@pytest.mark.parametrize("batch", [None, 1, 2, 5, 64])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("policy", ["topk", "lynx", "oea:k0=1", "xshare:m=5", "capacity:factor=0.7", "skip:ratio=0.6"])
def test_against_one_select_call_per_step(policy: str, batch: int | None, norm: bool) -> None:
    recording = made_up([3, 1, 7, 2, 5, 4])
    recording.norm_topk_prob = norm
    result = simulate(recording, policy, batch=batch)
    expected: list[dict[str, Any]] = [dict.fromkeys(_COUNTS, 0) for _ in range(LAYERS)]
    for begin, end in itertools.pairwise(result.offsets):
        rows = result.order[begin:end]
        for layer in range(LAYERS):
            scores = np.ascontiguousarray(recording.scores[rows, layer])
            got = _C_testing.select(scores, TOP_K, norm, policy, "decode_only", exact=recording.exact[rows])
            assert np.array_equal(result.routed_experts[begin:end, layer], got["ids"])
            sums, stats = expected[layer], got["stats"]
            for name in ("rows", "union_before", "active", "remapped_pairs", "retained_mass"):
                sums[name] += stats[name]
            sums["guard_hits"] += stats["guard_hit"]
            sums["steps"] += 1
    assert [{name: getattr(layer, name) for name in _COUNTS} for layer in result.layers] == expected
    assert [layer.layer for layer in result.layers] == [0, 2, 3]
    active = sum(layer.active / layer.steps for layer in result.layers) / LAYERS
    assert result.active == pytest.approx(active, rel=1e-12) and result.num_steps == result.layers[0].steps


_COUNTS = ("steps", "rows", "union_before", "active", "remapped_pairs", "guard_hits", "retained_mass")


ROUTERS = {
    "sigmoid": dict(kind="sigmoid"),
    "groups": dict(num_groups=3, top_groups=2),
    "sums": dict(kind="sigmoid", num_groups=3, top_groups=2, group_top2=True),
}


def with_router(name: str, bias: bool) -> Recording:
    """Makes a recording of 12 experts under another router."""
    recording = made_up([9, 4, 7])
    recording.scores = np.ascontiguousarray(recording.scores[:, :, :12])
    recording.router |= ROUTERS[name]
    if bias:
        recording.choice_bias = np.random.default_rng(1).normal(0.3, 0.3, (LAYERS, 12)).astype(np.float32)
    return recording


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("policy", ["topk", "lynx", "xshare:m=5"])
def test_other_routers(router: str, bias: bool, policy: str, tmp_path: Path) -> None:
    recording = with_router(router, bias)
    recording.save(tmp_path / "r.npz")
    result = simulate(Recording.load(tmp_path / "r.npz"), policy)
    for begin, end in itertools.pairwise(recording.step_offsets):
        for layer in range(LAYERS):
            scores = np.ascontiguousarray(recording.scores[begin:end, layer])
            rule = recording.router | (dict(bias=recording.choice_bias[layer]) if bias else {})
            want = _C_testing.select(scores, TOP_K, True, policy, exact=recording.exact[begin:end], **rule)
            np.testing.assert_array_equal(result.routed_experts[begin:end, layer], want["ids"])
    plain = with_router(router, bias)
    plain.router, plain.choice_bias = made_up([1]).router, np.zeros((LAYERS, 0), np.float32)
    if bias or router != "sigmoid":
        assert (simulate(plain, "topk").routed_experts != simulate(recording, "topk").routed_experts).any()


def test_routers_that_do_not_fit() -> None:
    recording = with_router("groups", True)
    recording.router["num_groups"] = 5
    with pytest.raises(ValidationError, match=r"num_groups.*12.*5"):
        simulate(recording, "topk")
    recording = with_router("sigmoid", True)
    recording.choice_bias = recording.choice_bias[:, :7].copy()
    with pytest.raises(ValidationError, match="choice_bias"):
        simulate(recording, "topk")
    recording = with_router("sigmoid", False)
    recording.router["kind"] = "tanh"
    with pytest.raises(ValidationError, match="sparsemixer"):
        simulate(recording, "topk")


def test_files_without_a_router_are_of_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording, file = made_up([3, 2]), tmp_path / "r.npz"
    with monkeypatch.context() as patch:
        patch.setattr(recording_module, "_FACTS", tuple(f for f in recording_module._FACTS if f != "router"))
        patch.setattr(
            recording_module, "_ARRAYS", {n: a for n, a in recording_module._ARRAYS.items() if n != "choice_bias"}
        )
        recording.save(file)
    loaded = Recording.load(file)
    assert loaded.router == recording.router
    assert loaded.choice_bias.shape == (LAYERS, 0)


def test_plan_by_layers() -> None:
    recording = made_up([5] * 6)
    plan, oea, topk = (simulate(recording, p, batch=4) for p in ("oea:k0=1@1-2=topk", "oea:k0=1", "topk"))
    assert [layer.active for layer in plan.layers] == [
        oea.layers[0].active,
        topk.layers[1].active,
        oea.layers[2].active,
    ]
    assert oea.layers[1].active < topk.layers[1].active


def test_own_experts_of_ties_and_order() -> None:
    recording = made_up([2, 2])
    recording.scores[0, 0] = 0
    recording.scores[0, 0, [4, 9]] = 1, 2
    own = own_experts(recording)
    assert own[0, 0].tolist() == [9, 4, 0]
    expected = np.argsort(-recording.scores, axis=-1, kind="stable")[..., :TOP_K]
    assert np.array_equal(own, expected)


def test_an_empty_recording() -> None:
    result = simulate(made_up([]), "lynx")
    assert result.num_steps == 0 and result.active == 0 and result.routed_experts.shape == (0, LAYERS, TOP_K)
    assert simulate(made_up([]), "lynx", batch=4).rows_per_step == 0


@pytest.mark.parametrize(
    ("selection", "text"), [("nonsense", "nonsense"), ("oea:k0=4", "k0"), ("lynx@5=topk", "0..4"), ("sere", "file")]
)
def test_bad_policies(selection: str, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        simulate(made_up([2]), selection)


def test_bad_scores_and_steps() -> None:
    recording = made_up([2, 2])
    order, offsets = np.arange(4), recording.step_offsets
    for bad_order, bad_offsets in [
        (order + 1, offsets),
        (order - 1, offsets),
        (order, offsets[1:]),
        (order, offsets[:-1]),
        (order, offsets[:0]),
        (order, np.array([0, 3, 2, 4])),
        (order, np.array([0, 2, 2, 4])),
    ]:
        with pytest.raises(ValidationError, match=r"order|offsets"):
            _C.simulate(recording.native(), "topk", bad_order, bad_offsets)
    for name, value in [
        ("scores", recording.scores.astype(np.float64)),
        ("scores", recording.scores[:, :2]),
        ("exact", recording.exact[1:]),
        ("layers", np.array([0, 2, 2], np.int32)),
        ("layers", np.array([0, 2, 5], np.int32)),
        ("num_experts_per_tok", 14),
        ("num_experts_per_tok", 0),
    ]:
        with pytest.raises(ValidationError, match=name):
            _C.simulate(recording.native() | {name: value}, "topk", order, offsets)
    recording.scores[3, 1, 2] = np.nan
    with pytest.raises(ValidationError, match="expert 2"):
        simulate(recording, "topk")


# Files


def test_save_and_load(tmp_path: Path) -> None:
    recording = made_up([3, 2, 6])
    file = tmp_path / "r.other"
    recording.save(file)
    loaded = Recording.load(file)
    for name in Recording.__dataclass_fields__:
        a, b = getattr(recording, name), getattr(loaded, name)
        assert np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype, name
    assert (
        simulate(loaded, "lynx", batch=3).to_dict()["layers"]
        == simulate(recording, "lynx", batch=3).to_dict()["layers"]
    )


def test_bad_files(tmp_path: Path) -> None:
    file = tmp_path / "r.npz"
    with pytest.raises(OSError, match=r"r\.npz"):
        Recording.load(file)
    recording = made_up([3, 2, 6])
    recording.save(file)
    whole = file.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-1000] + b"\0" * 1000):
        file.write_bytes(damaged)
        with pytest.raises((ValidationError, OSError)):
            Recording.load(file)
    for name, value in [
        ("scores", recording.scores.astype(np.float64)),
        ("step", recording.step[1:]),
        ("routed_experts", recording.routed_experts[:, 1:]),
        ("exact", recording.exact[:, None]),
        ("scores", recording.scores[0, 0]),
        ("choice_bias", np.zeros((3, 12), np.float32)),
        ("router", {"kind": "softmax"}),
        ("router", recording.router | {"num_groups": "2"}),
    ]:
        broken = made_up([3, 2, 6])
        setattr(broken, name, value)
        broken.save(file)
        with pytest.raises(ValidationError, match=name):
            Recording.load(file)


# Commands


def test_record_and_simulate(nano_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz, experts, report = tmp_path / "r.npz", tmp_path / "e.safetensors", tmp_path / "r.json"
    argv = ["record", "--tasks", str(TASKS), "--batch", "4", "--items", "9", "--selection", "oea:k0=2"]
    assert main([*argv, "--out", str(npz), "--routed-experts", str(experts), "--max-tokens", "5"]) == 0
    text = capsys.readouterr().out
    recording = Recording.load(npz)
    assert f"{len(recording)} rows" in text and recording.selection == "oea:k0=2" and recording.model == nano_path
    assert len(set(recording.request.tolist())) == 9 and max(np.diff(recording.step_offsets)) == 4

    argv = ["simulate", str(npz), "--selection", "topk,oea:k0=2", "--batch", "steps,1,8", "--layers"]
    assert main([*argv, "--json", str(report)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 6 + 2 + 2 + 6 and lines[3].split()[:2] == ["oea:k0=2", "steps"]
    results = json.loads(report.read_text())["results"]
    assert [(r["selection"], r["batch"]) for r in results][:3] == [("topk", None), ("oea:k0=2", None), ("topk", 1)]
    assert np.array_equal(simulate(recording, "oea:k0=2").routed_experts, recording.routed_experts)
    assert results[1]["active"] < results[0]["active"] and results[2]["active"] == 4

    # What was written for `replay` is what an engine of that batch size runs.
    rows = int(text.splitlines()[1].split()[1])
    with Engine(
        nano_path, max_num_seqs=4, expert_selection=f"replay:file={experts}", record_router_logits=True
    ) as engine:
        engine.generate(["a", "b", "c", "d"], {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True})
        replayed = engine._core.take_router_logits()["routed_experts"]
    full = np.repeat(np.diff(recording.step_offsets) == 4, np.diff(recording.step_offsets))
    assert full.sum() == rows >= 12 and np.array_equal(replayed, recording.routed_experts[full][:12])


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["record", "--tasks", "/no/such/folder", "--out", "x.npz"], "/no/such/folder"),
        (["record", "--tasks", str(TASKS)], "--out"),
        (["simulate", "/no/such/file.npz"], "/no/such/file.npz"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], text: str) -> None:
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("lynx-rt: error: ") and err.count("\n") == 1 and text in err
