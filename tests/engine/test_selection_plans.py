"""Expert selection in the engine: plans by layer, tables from files, replayed ids, prefill, requests that opt out."""

import functools

import numpy as np
import pytest
import tiny_models as tm
from driving import Job, alone, engine, params, run
from safetensors.numpy import save_file

from lynx_rt import CheckpointError, ModelNotFoundError, ValidationError

EXPERTS, TOP_K = 64, 8  # of the model "many", which has 2 layers


def jobs(model="many", count=4, exact=(), max_tokens=8):
    rng = np.random.default_rng(3)
    vocab = tm.ALL[model].vocab
    options = {"logprobs": 2, "max_tokens": max_tokens}
    return [Job(rng.integers(0, vocab, 6 + i).tolist(), options | {"exact": i in exact}) for i in range(count)]


def bits(results):
    return [r.bits for r in results]


@pytest.fixture(scope="module")
def many(tiny_path):
    return tiny_path("many")


@pytest.fixture(scope="module")
def own_bits(many):
    """Returns the bits of jobs(), each run alone."""
    return bits(alone(many, jobs()))


@pytest.fixture
def table(tmp_path):
    """Returns table(name, array) -> a file with that tensor."""

    def write(name, values, file="table"):
        path = str(tmp_path / f"{file}.safetensors")
        save_file({name: np.ascontiguousarray(values)}, path)
        return path

    return write


def layers_of(e, *keys):
    return [tuple(layer[key] for key in keys) for layer in e.stats()["layers"]]


# --- plans


@pytest.mark.parametrize(
    "plan, acting",
    [
        ("oea:k0=1", {0, 2, 3}), ("oea:k0=1@2=topk", {0, 3}), ("@0+3=oea:k0=1", {0, 3}), ("topk@2-3=oea:k0=1", {2, 3}),
        ("oea:k0=1@0-3=topk@3=oea:k0=1", {3}), ("oea:k0=1@0-3=topk", set()), ("oea:k0=1@1=topk", {0, 2, 3}),
        ("topk@1=oea:k0=1", set()),  # a dense layer has no experts to select
    ],
)  # fmt: skip
def test_a_plan_acts_on_the_layers_that_it_names(tiny_path, plan, acting):
    e = engine(tiny_path("mixed"), expert_selection=plan)  # layer 1 of 4 is dense
    assert [layer["layer"] for layer in e.stats()["layers"]] == [0, 2, 3]
    results = run(e, jobs("mixed"))
    for layer in e.stats()["layers"]:
        assert layer["steps"] > 0
        assert (layer["active"] < layer["union_before"]) == (layer["remapped_pairs"] > 0) == (layer["layer"] in acting)
        if layer["layer"] not in acting:
            assert layer["active"] == layer["union_before"] and layer["retained_mass"] == layer["rows"]
    same = bits(results) == bits(alone(tiny_path("mixed"), jobs("mixed")))
    assert same == (not acting)


def test_layers_have_their_own_policies(many):
    e = engine(many, expert_selection="top_j:j=2@1=top_j:j=3")
    run(e, jobs(count=1))
    assert layers_of(e, "active") == [(2 * 7,), (3 * 7,)]  # a single row, seven decode steps
    assert e.expert_selection() == "top_j:j=2@1=top_j:j=3"


@pytest.mark.parametrize(
    "selection, says",
    [
        ("topk@2=oea", "layers: expected 0..1, got 2"), ("topk@0-7=oea", "layers: expected 0..1, got 7"),
        ("oea:k0=9", "k0: expected 1..8 (experts per token of this model), got 9"),
        ("topk@1=oea:k0=9", "k0: expected 1..8 (experts per token of this model), got 9"),
        ("xshare:m=65", "m: expected 1..64 (experts of this model), got 65"),
        ("deny_rank:rank=8", "rank: expected 0..7 (ranks of this model's choices), got 8"),
        ("oea@0=lynks", 'unknown policy "lynks"; the policies are off, topk, lynx,'),
    ],
)  # fmt: skip
def test_selections_that_do_not_fit_the_model(many, selection, says):
    e = engine(many, expert_selection="oea:k0=3")
    for make in (lambda: engine(many, expert_selection=selection), lambda: e.set_expert_selection(selection)):
        with pytest.raises(ValidationError) as error:
            make()
        assert str(error.value).startswith(f"expert_selection: {says}") and error.value.field == "expert_selection"
    assert e.expert_selection() == "oea:k0=3"


# --- tables


def identity():
    return np.tile(np.arange(EXPERTS, dtype=np.int32), (2, 1))


def recorded(*rows):
    """[N, 2, k]: expert e of a row stands for experts e, e + 1, .. e + 7, in both layers."""
    return np.array([[np.arange(e, e + TOP_K)] * 2 for e in rows], np.int32)


GOOD = dict(
    similarity=np.random.default_rng(0).random((2, EXPERTS, EXPERTS)).astype(np.float32), alias=identity(),
    routed_experts=recorded(0),
)  # fmt: skip
TABLE_OF = dict(sere="similarity", alias="alias", replay="routed_experts")


def changed(array, value, index=(0, 0, 0)):
    array = array.copy()
    array[index[: array.ndim]] = value
    return array


@pytest.mark.parametrize("policy", TABLE_OF)
def test_a_table_that_is_not_there(many, table, tmp_path, policy):
    name = TABLE_OF[policy]
    e = engine(many)

    def fails(file, error, says):
        with pytest.raises(error, match=says):
            e.set_expert_selection(f"{policy}:file={file}")
        with pytest.raises(error, match=says):
            engine(many, expert_selection=f"topk@1={policy}:file={file}")
        assert e.expert_selection() == "topk"

    fails("", ValidationError, f'expert_selection: expected file=PATH, a safetensors file with the table "{name}"')
    fails(tmp_path / "missing.safetensors", ModelNotFoundError, "missing.safetensors")
    fails(table("other", GOOD[name]), CheckpointError, name)
    text = tmp_path / "text.safetensors"
    text.write_text("not a table")
    fails(text, CheckpointError, "text.safetensors")


@pytest.mark.parametrize(
    "policy, values, says",
    [
        ("sere", GOOD["similarity"][0], "expected F32 [2, 64, 64], got F32 [64, 64]"),
        ("sere", GOOD["similarity"][:1], "expected F32 [2, 64, 64], got F32 [1, 64, 64]"),
        ("sere", GOOD["similarity"].astype(np.float64), "expected F32 [2, 64, 64], got F64 [2, 64, 64]"),
        ("sere", changed(GOOD["similarity"], np.nan, (0, 1, 2)), "[66]: expected a finite number, got nan"),
        ("alias", identity().T, "expected I32 [2, 64], got I32 [64, 2]"),
        ("alias", identity().astype(np.int64), "expected I32 [2, 64], got I64 [2, 64]"),
        ("alias", changed(identity(), 64, (1, 3)), "[67]: expected 0..63, got 64"),
        ("alias", changed(identity(), -1), "[0]: expected 0..63, got -1"),
        ("replay", recorded(0)[..., :7], "expected I32 [1, 2, 8], got I32 [1, 2, 7]"),
        ("replay", recorded(0)[:, :1], "expected I32 [1, 2, 8], got I32 [1, 1, 8]"),
        ("replay", recorded(0)[0], "expected I32 [-1, 2, 8], got I32 [2, 8]"),
        ("replay", recorded(0).astype(np.float32), "expected I32 [1, 2, 8], got F32 [1, 2, 8]"),
        ("replay", recorded(0)[:0], "expected at least one row, got none"),
        ("replay", changed(recorded(0), 64), "[0]: expected -1..63, got 64"),
        ("replay", changed(recorded(0), -2), "[0]: expected -1..63, got -2"),
        ("replay", changed(recorded(0), 1, (0, 1, 0)), "[9]: expected each expert once in a row, got 1 again"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_the_model(many, table, policy, values, says):
    file = table(TABLE_OF[policy], values)
    with pytest.raises(ValidationError) as error:
        engine(many, expert_selection=f"{policy}:file={file}")
    assert str(error.value).startswith(f"expert_selection: {file}: {TABLE_OF[policy]}")
    assert says in str(error.value) and error.value.field == "expert_selection"


def test_each_layer_reads_its_own_table(many, table):
    alias = np.tile(np.array([[5], [7]], np.int32), (1, EXPERTS))
    alias[1, ::2] = 9
    e = engine(many, expert_selection=f"alias:file={table('alias', alias)}")
    run(e, jobs(count=1))
    (first,), (second,) = layers_of(e, "active")
    assert first == 7 and 7 < second <= 14  # one expert in the first layer, one or two in the second

    # sere: all experts are alike in layer 0, none are in layer 1.
    similarity = np.stack([np.ones((EXPERTS, EXPERTS)), np.eye(EXPERTS)]).astype(np.float32)
    e = engine(many, expert_selection=f"sere:s=1,rho=0.5,file={table('similarity', similarity, 'similar')}")
    run(e, jobs())
    (less, before), (same, before_second) = layers_of(e, "active", "union_before")
    assert less < before and same == before_second


REWRITTEN = dict(sere=(1 - GOOD["similarity"]), alias=identity()[:, ::-1], replay=recorded(40, 8))
BAD = dict(sere=GOOD["similarity"][:1], alias=changed(identity(), 64), replay=changed(recorded(0), 64))


@pytest.mark.parametrize("policy", TABLE_OF)
def test_a_table_written_anew_is_read_anew(many, table, tmp_path, policy):
    """Setting a selection takes what its files say at that time, all of it or, where it is refused, nothing."""
    text = f"{policy}:{'s=1,' if policy == 'sere' else ''}file={tmp_path}/table.safetensors"
    name = TABLE_OF[policy]

    table(name, REWRITTEN[policy])
    expected = bits(run(engine(many, expert_selection=text), jobs()))
    table(name, GOOD[name])
    e = engine(many, expert_selection=text)
    first = bits(run(e, jobs()))
    assert first != expected

    table(name, REWRITTEN[policy])
    with pytest.raises(ModelNotFoundError):  # the table is read before what fails
        e.set_expert_selection(f"{text}@1=alias:file={tmp_path}/missing")
    assert e.expert_selection() == engine(many, expert_selection=text).expert_selection()
    if policy != "replay":  # a recording goes on where it was
        assert bits(run(e, jobs())) == first
    e.set_expert_selection(text)
    assert bits(run(e, jobs())) == expected

    table(name, BAD[policy])
    with pytest.raises(ValidationError, match=name):
        e.set_expert_selection(text)
    (tmp_path / "table.safetensors").write_text("not a table")
    with pytest.raises(CheckpointError):
        e.set_expert_selection(text)
    if policy != "replay":
        assert bits(run(e, jobs())) == expected


def test_identity_tables_change_nothing(many, table, own_bits):
    for selection in (f"alias:file={table('alias', identity())}",
                      f"sere:s=8,file={table('similarity', GOOD['similarity'], 'similar')}"):  # fmt: skip
        e = engine(many, expert_selection=selection)
        assert bits(run(e, jobs())) == own_bits
        assert layers_of(e, "remapped_pairs") == [(0,), (0,)]


# --- replay


def active_by_step(e, count, steps):
    """Returns the active experts of each decode step of `count` requests."""
    for job in jobs(count=count, max_tokens=steps + 1):
        e.add_request(job.prompt, params(**job.options))
    active = []
    while e.has_unfinished():
        e.reset_stats()
        e.step()
        stats = e.stats()
        if stats["decode_steps"]:
            assert stats["decode_rows"] == count
            active.append([layer["active"] for layer in stats["layers"]])
    assert len(active) == steps
    return active


def test_replay_reads_the_recorded_experts(many, table, own_bits):
    e = engine(many, expert_selection=f"replay:file={table('routed_experts', recorded(16))}")
    results = run(e, jobs())
    steps = e.stats()["layers"][0]["steps"]
    assert layers_of(e, "active", "rows") == [(TOP_K * steps, 4 * steps)] * 2
    assert bits(results) != own_bits


def test_replay_wraps_around_and_begins_again_when_set(many, table):
    file = table("routed_experts", recorded(0, 0, 40))
    e = engine(many, expert_selection=f"replay:file={file}")
    # Steps of two rows take rows (0, 1), (2, 0), (1, 2), (0, 1), ...
    assert active_by_step(e, 2, 4) == [[8, 8], [16, 16], [16, 16], [8, 8]]
    assert active_by_step(e, 2, 2) == [[16, 16], [16, 16]]  # goes on
    assert active_by_step(e, 2, 2) == [[8, 8], [16, 16]]
    e.set_expert_selection(f"replay:file={file}")
    assert active_by_step(e, 2, 2) == [[8, 8], [16, 16]]


def test_replay_of_some_layers(many, table):
    rows = recorded(0, 40)
    rows[1, 1] = -1
    e = engine(many, expert_selection=f"topk@1=replay:file={table('routed_experts', rows)}")
    assert [second for _, second in active_by_step(e, 1, 4)] == [8, 0, 8, 0]


def test_replay_takes_rows_for_steps_in_which_it_acts_only(many, table):
    file = table("routed_experts", recorded(0, 0, 40))
    e = engine(many, expert_selection=f"oea:k0=1,phase=all@1=replay:file={file}")
    assert [second for _, second in active_by_step(e, 2, 3)] == [8, 16, 16]  # the prompts took none


def test_a_selection_that_is_refused_leaves_the_recording_alone(many, table, tmp_path):
    first, second = (table("routed_experts", recorded(*rows), f"last{rows[2]}") for rows in ((0, 0, 40), (0, 0, 0)))
    e = engine(many, expert_selection=f"replay:file={first}")
    assert active_by_step(e, 2, 1) == [[8, 8]]
    with pytest.raises(ModelNotFoundError):
        e.set_expert_selection(f"replay:file={second}@1=alias:file={tmp_path}/missing")
    assert active_by_step(e, 2, 2) == [[16, 16], [16, 16]]


def test_a_plan_replays_one_recording(many, table):
    first, second = (table("routed_experts", recorded(*rows), str(rows[0])) for rows in ((0,), (8,)))
    with pytest.raises(ValidationError) as error:
        engine(many, expert_selection=f"replay:file={first}@1=replay:file={second}")
    assert str(error.value) == (
        f"expert_selection: replay: expected the same file in all layers, got {first} and {second}"
    )


# --- prefill


def test_phase_all_acts_on_prompts(many):
    rng = np.random.default_rng(5)
    job = Job(rng.integers(0, tm.ALL["many"].vocab, 40).tolist(), {"prompt_logprobs": 1, "max_tokens": 1})
    own = run(engine(many), [job])[0].prompt_logprobs
    assert run(engine(many, expert_selection="oea:k0=1"), [job])[0].prompt_logprobs == own
    assert run(engine(many, expert_selection="oea:k0=1,phase=all"), [job])[0].prompt_logprobs != own
    assert run(engine(many, expert_selection="oea:k0=1,phase=all@0-1=topk"), [job])[0].prompt_logprobs == own


@pytest.mark.parametrize(
    "selection, shared", [("oea:k0=1", True), ("oea:k0=1,phase=all", False), ("topk@1=top_j:phase=all", False)]
)
def test_pages_of_prompts_that_a_policy_changed_are_not_shared(many, selection, shared):
    rng = np.random.default_rng(5)
    prompt = rng.integers(0, tm.ALL["many"].vocab, 40).tolist()
    e = engine(many, expert_selection=selection, block_size=4)
    job = Job(prompt, {"max_tokens": 1})
    run(e, [job], check=True)
    assert run(e, [job], check=True)[0].num_cached_tokens == (36 if shared else 0)
    # Pages of exact requests are the model's own; so they may be.
    run(e, [Job(prompt, {"max_tokens": 1, "exact": True})], check=True)
    assert run(e, [job], check=True)[0].num_cached_tokens == 36


# --- exact requests

PLANS = [
    "lynx:alpha=8", "lynx_literal:alpha=8", "oea:k0=1", "xshare:m=12,k0=1", "des_vote:m=12", "sere:s=1,file=FILE", "skip:ratio=0.8",
    "top_j:j=2", "top1", "deny_rank:rank=0", "capacity:factor=0.25", "alias:file=FILE", "replay:file=FILE",
    "top1@0=des_vote:m=9,phase=all",
]  # fmt: skip


@functools.cache
def merged():
    """Every second expert becomes the one before it."""
    return identity() // 2 * 2


@pytest.mark.parametrize("all_phases", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_exact_requests_get_the_models_own_tokens(many, table, own_bits, plan, all_phases):
    policy = plan.split(":")[0]
    if policy in TABLE_OF:
        values = {"alias": merged(), "replay": recorded(0, 20), "sere": GOOD["similarity"]}[policy]
        plan = plan.replace("FILE", table(TABLE_OF[policy], values))
    if all_phases and "@" not in plan:
        plan = ("top_j:j=1" if plan == "top1" else plan) + ",phase=all"
    e = engine(many, expert_selection=plan)
    got = bits(run(e, jobs(exact=(0, 2)), check=True))
    assert sum(n for (n,) in layers_of(e, "remapped_pairs")) > 0, "the policy never acted: this test shows nothing"
    assert [got[0], got[2]] == [own_bits[0], own_bits[2]]
    assert [got[1], got[3]] != [own_bits[1], own_bits[3]]
