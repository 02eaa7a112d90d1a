"""Isolation groups in the engine: what a group's requests say depends on nobody outside of the group."""

import numpy as np
import pytest
import tiny_models as tm
from driving import Job, alone, engine, params, run
from isas import ISAS

from lynx_rt import ValidationError

VOCAB = tm.ALL["many"].vocab
# Prompts have steps of their own, so that selection acts on every decode row whoever else arrives.
OPTIONS = {"enable_mixed_chunk": False, "max_num_seqs": 32, "max_num_batched_tokens": 512}
SELECTIONS = ["lynx", "oea:k0=2", "cover:delta=0.3", "capacity:factor=0.5", "lynx:phase=all", "topk@1=oea:k0=1"]


def jobs(group, count=4, seed=3, arrival=0, **options):
    rng = np.random.default_rng(seed)
    options = {"logprobs": 2, "max_tokens": 12, "isolation_group": group} | options
    return [Job(rng.integers(0, VOCAB, 5 + i).tolist(), options, arrival) for i in range(count)]


def bits(results):
    return [r.bits for r in results]


@pytest.mark.parametrize("isa", sorted({"scalar", ISAS[-1]}))
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_groups_bits_do_not_depend_on_other_groups(tiny_path, selection, isa):
    path, options = tiny_path("many"), OPTIONS | {"isa": isa}
    mine = jobs("a")
    expected = bits(run(engine(path, expert_selection=selection, **options), mine))
    assert expected != bits(alone(path, mine, **options)), "selection changes nothing: the test would say nothing"

    with_others = [
        *jobs("b", 5, seed=4), *mine[:2], *jobs("", 3, seed=5), *jobs("", 2, seed=6, exact=True),
        *jobs("c", 2, seed=7, arrival=3), *mine[2:], *jobs("b", 2, seed=8, arrival=5, max_tokens=3), *jobs("d", 1, seed=9),
    ]  # fmt: skip
    e = engine(path, expert_selection=selection, **options)
    results = run(e, with_others, check=True)
    assert [results[i].bits for i, job in enumerate(with_others) if job in mine] == expected
    assert any(layer["remapped_pairs"] for layer in e.stats()["layers"])

    merged = [Job(j.prompt, j.options | {"isolation_group": "a"}, j.arrival) for j in with_others]
    together = run(engine(path, expert_selection=selection, **options), merged)
    assert [together[i].bits for i, job in enumerate(with_others) if job in mine] != expected, (
        "sharing would be harmless"
    )


def test_exact_requests_are_exact_in_every_group(tiny_path):
    path = tiny_path("many")
    exact = jobs("a", 2, exact=True) + jobs("", 2, seed=5, exact=True)
    results = run(engine(path, expert_selection="lynx", **OPTIONS), exact + jobs("a", seed=6) + jobs("b", seed=7))
    assert bits(results[:4]) == bits(alone(path, exact, **OPTIONS))


def test_a_group_of_one_has_the_models_own_routing(tiny_path):
    path = tiny_path("many")
    singles = [job for i in range(4) for job in jobs(f"group {i}", 1, seed=i)]
    e = engine(path, expert_selection="oea:k0=1", block_size=4, **OPTIONS)
    results = run(e, singles)
    assert bits(results) == bits(alone(path, singles, **OPTIONS))
    s = e.stats()
    assert s["decode_rows"] == 4 * 11 and s["decode_rows_selected"] == 0

    # So its pages may be found by others, and those of two in a group may not.
    def found(tokens):
        return run(e, [Job([*tokens, 1], {"max_tokens": 1})])[0].num_cached_tokens

    assert found(singles[0].prompt + results[0].tokens) == (5 + 11) // 4 * 4
    pair = jobs("pair", 2, seed=20)
    results = run(e, pair)
    assert e.stats()["decode_rows_selected"] == 22
    assert found(pair[0].prompt + results[0].tokens) == 4


def test_decode_rows_selected_counts_groups_of_two_or_more(tiny_path):
    e = engine(tiny_path("many"), expert_selection="lynx", **OPTIONS)
    run(e, jobs("a", 3, max_tokens=2) + jobs("b", 1, max_tokens=2) + jobs("b", 1, exact=True, max_tokens=2))
    s = e.stats()
    assert (s["decode_rows"], s["decode_rows_selected"], s["decode_rows_exact"]) == (5, 4, 1)
    assert all(layer["rows"] == 5 and layer["steps"] == 1 for layer in s["layers"])


def test_a_name_that_is_too_long(tiny_path):
    with pytest.raises(ValidationError, match="1025") as error:
        engine(tiny_path("many")).add_request([3], params(isolation_group="x" * 1025))
    assert error.value.field == "isolation_group"
