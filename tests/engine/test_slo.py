"""The governor in the engine. tests/cpp/test_governor.cc tests its choices on given numbers."""

import pytest

import lynx_rt

TEXTS = (
    "Q: 12 times 22 = ?",
    "Q: 345 + 678 = ?",
    "The sea",
    "def add(a, b):",
    "In the beginning",
    "1, 2, 4, 8,",
    "zebra",
    "A:",
)
PROMPTS = [f"{text}\n" for text in TEXTS]
PARAMS = lynx_rt.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def engine():
    with lynx_rt.Engine(
        lynx_rt.shipped_model(), max_num_seqs=8, enable_mixed_chunk=False, enable_prefix_caching=False
    ) as made:
        yield made


def run(engine, selection):
    engine.set_expert_selection(selection)
    engine.reset_stats()
    return [output.outputs[0].token_ids for output in engine.generate(PROMPTS, PARAMS)], engine.stats()


def test_target_that_every_step_meets_leaves_the_model_alone(engine):
    want, plain = run(engine, None)
    assert plain.slo is None
    got, stats = run(engine, "slo:tpot_ms=1000000")
    assert got == want
    assert stats.slo.level == 0 and stats.slo.steps_over_target == 0
    assert [steps for _, steps in stats.slo.levels] == [stats.decode_steps] + [0] * (len(stats.slo.levels) - 1)
    assert all(layer.active == layer.union_before for layer in stats.layers)


@pytest.mark.parametrize("policy", ["lynx", "oea"])
def test_target_that_no_step_meets_takes_the_strongest_level(engine, policy):
    _, stats = run(engine, f"slo:tpot_ms=0.000001,policy={policy}@0=topk")
    slo = stats.slo
    assert slo.steps_over_target == stats.decode_steps > 5
    assert slo.levels[0] == ("topk@0=topk", 1), "only the first step, of which nothing was known"
    assert slo.levels[-1][1] == stats.decode_steps - 1
    assert slo.levels[-1][0].startswith(policy) and slo.levels[-1][0].endswith("@0=topk")
    assert slo.seconds_per_expert >= 0
    first, *others = stats.layers
    assert first.active == first.union_before
    assert sum(layer.active for layer in others) < 0.9 * sum(layer.union_before for layer in others)


def test_misses_of_experts_on_a_disk_are_turned_down(tmp_path):
    with lynx_rt.Engine(
        lynx_rt.shipped_model(),
        max_num_seqs=8,
        quantization_cache=tmp_path,
        expert_memory=0.25,
        enable_prefix_caching=False,
    ) as tiered:
        _, own = run(tiered, "topk")
        _, stats = run(tiered, "slo:tpot_ms=0.000001,policy=topk")
    strongest, steps = stats.slo.levels[-1]
    assert strongest.startswith("topk:resident=3") and steps == stats.decode_steps - 1
    assert stats.slo.seconds_per_miss > 0
    assert stats.tier.decode_misses < 0.5 * own.tier.decode_misses


def test_text(engine):
    engine.set_expert_selection("slo:policy=oea,tpot_ms=12.50@7=topk")
    assert engine.expert_selection == "slo:tpot_ms=12.5,policy=oea@7=topk"
    for text, says in {
        "slo": "expected tpot_ms",
        "slo:tpot_ms=0": 'milliseconds > 0, got "0"',
        "slo:target=3": 'no key "target"; its keys are tpot_ms, policy',
        "slo:tpot_ms=3,policy=skip": 'expected lynx, oea, topk or cover, got "skip"',
        "slo:": "expected tpot_ms",
        "slo:tpot_ms=1,tpot_ms=2": 'key "tpot_ms" is given twice',
        "slo:tpot_ms=1,policy=lynx,policy=oea": 'key "policy" is given twice',
        "slo:tpot_ms=1,": 'expected key=value, got ""',
        "slo:tpot_ms": 'expected key=value, got "tpot_ms"',
        "slo:tpot_ms=3@0=": 'expected a policy after "="',
        "slo:tpot_ms=3@8=topk": "layers: expected 0..7, got 8",
    }.items():
        with pytest.raises(lynx_rt.ValidationError) as error:
            engine.set_expert_selection(text)
        assert error.value.field == "expert_selection" and says in str(error.value)
    assert engine.expert_selection == "slo:tpot_ms=12.5,policy=oea@7=topk", "a text that is refused changes nothing"
