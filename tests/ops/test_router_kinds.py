"""Every kind of router: against transformers' own routers, against the float64 oracle under every policy, and the rules
that selection keeps with every kind.
"""

from functools import partial

import numpy as np
import pytest
import reference_select as ref
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_policies import ADMITTING, PER_ROW, POLICIES
from selection_cases import row_sets, rows, rule_cases
from transformers import AutoConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeTopKRouter
from transformers.models.hunyuan_v1_moe.modeling_hunyuan_v1_moe import HunYuanMoEV1Gate
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeTopKRouter

from lynx_rt import _C_testing
from lynx_rt.errors import ValidationError

examples = settings(derandomize=True, deadline=None, max_examples=100)
more_examples = partial(settings, examples)

HIDDEN, NUM_ROWS = 16, 60


# --- transformers


def golden(name, router, rule, norm_topk=True, k=3, num_experts=12, **config):
    return pytest.param(router, config | dict(hidden_size=HIDDEN), rule, norm_topk, k, num_experts, id=name)


def mla(**config):
    """Of DeepSeek configs: groups by their own names."""
    return dict(n_group=1, topk_group=1, routed_scaling_factor=1.0) | config


GROUPED = dict(n_group=4, topk_group=2)
GROUPS = dict(num_groups=4, top_groups=2)
SIGMOID = dict(kind="sigmoid", min_sum=1e-20)
GOLDEN = [
    golden("mixtral", MixtralTopKRouter, {}, k=2, num_experts=8),
    golden("qwen2_moe", Qwen2MoeTopKRouter, {}, norm_topk=False, norm_topk_prob=False),
    golden("qwen2_moe-norm", Qwen2MoeTopKRouter, {}, norm_topk_prob=True),
    golden("gpt_oss", GptOssTopKRouter, {}),
    golden("granitemoe", GraniteMoeTopKRouter, {}),
    golden("hunyuan_v1_moe", HunYuanMoEV1Gate, {}),
    golden("deepseek_v2", DeepseekV2TopkRouter, dict(scale=1.0), False, topk_method="greedy", **mla()),
    golden("deepseek_v2-groups", DeepseekV2TopkRouter, dict(scale=16.0, **GROUPS), False, topk_method="group_limited_greedy",
           **mla(routed_scaling_factor=16.0, **GROUPED)),
    golden("deepseek_v3", DeepseekV3TopkRouter, SIGMOID | dict(scale=2.5, group_top2=True, **GROUPS), norm_topk_prob=True,
           **mla(routed_scaling_factor=2.5, **GROUPED)),
    golden("deepseek_v3-no-norm", DeepseekV3TopkRouter, dict(kind="sigmoid", group_top2=True, **GROUPS), False,
           norm_topk_prob=False, **mla(**GROUPED)),
    golden("deepseek_v3-one-group", DeepseekV3TopkRouter, SIGMOID, norm_topk_prob=True, **mla()),
    golden("glm4_moe", Glm4MoeTopkRouter, SIGMOID | dict(scale=1.5), norm_topk_prob=True, **mla(routed_scaling_factor=1.5)),
    golden("glm4_moe-groups", Glm4MoeTopkRouter, dict(kind="sigmoid", group_top2=True, **GROUPS), False, norm_topk_prob=False,
           **mla(**GROUPED)),
    golden("minimax_m2", MiniMaxM2TopKRouter, dict(kind="sigmoid")),
    golden("ernie4_5_moe", Ernie4_5_MoeTopKRouter, dict(min_sum=1e-12), moe_norm_min=1e-12),
    golden("ernie4_5_moe-clamped", Ernie4_5_MoeTopKRouter, dict(min_sum=0.5), moe_norm_min=0.5),
    golden("llama4", Llama4Router, dict(kind="sigmoid"), False, k=1),
    golden("llama4-top2", Llama4Router, dict(kind="sigmoid"), False, k=2),
    golden("phimoe", PhimoeTopKRouter, dict(kind="sparsemixer"), False, k=2, num_experts=16, router_jitter_noise=0.01,
           input_jitter_noise=0.0),
    golden("phimoe-wide", PhimoeTopKRouter, dict(kind="sparsemixer", jitter=0.2), False, k=2, num_experts=16,
           router_jitter_noise=0.2, input_jitter_noise=0.0),
]  # fmt: skip


class Config:
    """What a router reads, with k and the experts under every name that one has."""

    def __init__(self, k, num_experts, **members):
        for name in ("num_experts_per_tok", "moe_topk"):
            setattr(self, name, k)
        for name in ("num_experts", "num_local_experts"):
            setattr(self, name, num_experts)
        for name, value in members.items():
            setattr(self, name, value)


def routed(router, hidden, bias):
    """(logits [T, E], weights [T, E], 0 of experts that were not chosen) of a transformers router."""
    if isinstance(router, Llama4Router):
        weights, logits = router(hidden)
        return logits, weights
    logits, weights, ids = router(hidden, bias) if isinstance(router, MiniMaxM2TopKRouter) else router(hidden)
    return logits, torch.zeros_like(logits).scatter_(1, ids, weights)


def margin(rule, row, k):
    """How far a row is from another choice, relative to what it is chosen by: of experts, and of groups."""
    gaps = -np.diff(-np.sort(-rule.ranked(row))[k - 1 : k + 1])
    if rule.num_groups > 1:
        sums = rule.ungated(row) + (0 if rule.bias is None else rule.bias)
        groups = np.sort(sums.reshape(rule.num_groups, -1), axis=1)
        scores = -np.sort(-(groups[:, -2:].sum(1) if rule.group_top2 else groups[:, -1]))
        gaps = [*gaps, scores[rule.top_groups - 1] - scores[rule.top_groups]]
    return min(gaps)


@pytest.mark.parametrize("offset", [0.0, 7.0])
@pytest.mark.parametrize(("make", "config", "rule", "norm_topk", "k", "num_experts"), GOLDEN)
def test_own_routing_is_that_of_transformers(make, config, rule, norm_topk, k, num_experts, offset):
    generator = torch.Generator().manual_seed(num_experts + k)
    router = make(Config(k, num_experts, **config)).eval()
    bias = None
    with torch.no_grad():
        for name, parameter in [*router.named_parameters(), *router.named_buffers()]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if "bias" in name else 0.5))
            if "e_score_correction_bias" in name:
                parameter += offset
                bias = parameter.flatten()
        if make is MiniMaxM2TopKRouter:
            bias = torch.randn(num_experts, generator=generator) * 0.2 + offset
        logits, weights = routed(router, torch.randn(NUM_ROWS, HIDDEN, generator=generator), bias)
    rule = rule | ({} if bias is None else dict(bias=bias.numpy()))
    logits, want = logits.numpy().astype(np.float32), weights.numpy()
    got = _C_testing.select(logits, k, norm_topk, **rule)
    far = np.array([margin(ref.Rule(**rule), row, k) > 1e-5 for row in logits.astype(np.float64)])
    assert far.mean() > 0.9
    dense = np.zeros_like(want)
    np.put_along_axis(dense, got["ids"].astype(np.int64), got["weights"], axis=1)
    np.testing.assert_allclose(dense[far], want[far], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal((dense > 0)[far], (want > 0)[far])
    if bias is not None:  # which decides something
        assert set(map(tuple, got["ids"])) != set(
            map(tuple, _C_testing.select(logits, k, norm_topk, **rule | dict(bias=None))["ids"])
        )


def test_configs_that_routers_are_made_of_are_real():
    """The names that Config has are those of transformers' configs."""
    for model_type, names in {"deepseek_v3": ["n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob"],
                              "ernie4_5_moe": ["moe_norm_min"], "phimoe": ["router_jitter_noise"]}.items():  # fmt: skip
        config = AutoConfig.for_model(model_type)
        assert all(hasattr(config, name) for name in names)


# --- the oracle


@pytest.mark.parametrize("policy", ["topk", *POLICIES])
def test_matches_the_oracle(policy):
    @more_examples(max_examples=60)
    @given(rule_cases([policy] if policy != "topk" else ["top_j"]))
    def check(case):
        if policy == "topk":
            case.policy, case.params = "topk", {}
        ref.assert_matches(case.select(), case.oracle())

    check()


@more_examples(max_examples=200)
@given(rule_cases(), st.integers(1, 3))
def test_matches_the_oracle_with_ties(case, levels):
    case.scores = case.rng.integers(0, levels, case.scores.shape).astype(np.float32)
    if "bias" in case.rule:
        case.rule["bias"] = np.zeros_like(case.rule["bias"])
    if case.rule["kind"] == "softmax" and case.rule.get("num_groups", 1) > 1:
        case.rule["group_top2"] = False  # sums of probabilities are rounded
    ref.assert_matches(case.select(), case.oracle())


# --- invariants


def open_experts(case):
    """[T] the experts of each row's groups."""
    rule = ref.Rule(**case.rule)
    return [set(np.flatnonzero(np.isfinite(rule.ranked(row)))) for row in case.scores.astype(np.float64)]


@more_examples(max_examples=200)
@given(rule_cases())
def test_result_is_well_formed(case):
    got, own = case.select(), case.own()
    ids, weights = got["ids"], got["weights"]
    assert ((ids >= -1) & (ids < case.num_experts)).all()
    assert (own["ids"] >= 0).all()
    assert all(len(experts) == (row >= 0).sum() for experts, row in zip(row_sets(ids), ids))  # distinct
    assert np.isfinite(weights).all() and (weights >= 0).all() and (weights[ids < 0] == 0).all()
    if case.policy not in ("alias", "replay"):
        for chosen, allowed in zip(row_sets(ids), open_experts(case)):
            assert chosen <= allowed
            assert chosen
    damp = case.params.get("damp", 0.0)
    if damp == 0:
        own_sums = own["weights"].sum(1) * (ids >= 0).any(1)
        np.testing.assert_allclose(weights.sum(1), own_sums, rtol=1e-5, atol=1e-6)  # W0
    if case.norm_topk and case.rule["min_sum"] == 0 and case.rule["kind"] != "sparsemixer":
        np.testing.assert_allclose(own["weights"].sum(1), case.rule["scale"], rtol=1e-5)
    assert got["active"].tolist() == sorted(set().union(*row_sets(ids)))
    assert 0 <= got["stats"]["retained_mass"] <= len(ids) * (1 + 1e-9)
    for t in range(len(ids)):
        if np.array_equal(ids[t], own["ids"][t]):
            assert weights[t].tobytes() == own["weights"][t].tobytes()


@examples
@given(rule_cases(min_rows=2))
def test_own_routing_of_a_row_depends_on_that_row_alone(case):
    own = case.own()
    for part in ([0], [1, 0]):
        alone = case.own(case.scores[part])
        assert alone["ids"].tobytes() == own["ids"][part].tobytes()
        assert alone["weights"].tobytes() == own["weights"][part].tobytes()


@examples
@given(rule_cases(PER_ROW, min_rows=2))
def test_what_a_policy_of_single_rows_gives_a_row_does_not_depend_on_the_others(case):
    together, alone = case.select(), case.select(rows=[1])
    assert alone["ids"].tobytes() == together["ids"][[1]].tobytes()
    assert alone["weights"].tobytes() == together["weights"][[1]].tobytes()


@examples
@given(rule_cases([p for p in POLICIES if p != "capacity"], min_rows=2))
def test_permuting_rows_permutes_the_result(case):
    order = case.rng.permutation(len(case.scores))
    got, permuted = case.select(), case.select(rows=order)
    assert got["ids"][order].tobytes() == permuted["ids"].tobytes()
    assert got["weights"][order].tobytes() == permuted["weights"].tobytes()


@examples
@given(rule_cases(min_rows=2))
def test_exact_rows_and_other_phases_get_their_own_routing(case):
    own = case.own()
    ref.assert_same_bits(case.select(phase="mixed"), own)
    case.exact = (case.rng.random(len(case.scores)) < 0.5).astype(np.uint8)
    got = case.select()
    for t in np.flatnonzero(case.exact):
        assert got["ids"][t].tobytes() == own["ids"][t].tobytes()
        assert got["weights"][t].tobytes() == own["weights"][t].tobytes()


@examples
@given(rule_cases(ADMITTING, min_rows=2))
def test_rows_keep_what_is_admitted_of_their_own_choices(case):
    got, own, oracle = case.select(), case.own(), case.oracle()
    if oracle.admitted is None or got["stats"]["guard_hit"]:
        return
    for kept, wanted, allowed, first in zip(
        row_sets(got["ids"]), row_sets(own["ids"]), open_experts(case), own["ids"][:, 0]
    ):
        assert wanted & oracle.admitted <= kept
        assert kept == {first} or kept <= oracle.admitted & allowed


@examples
@given(rule_cases(["lynx", "oea", "xshare", "cover", "skip", "top_j", "capacity"]), st.sampled_from([-4.0, 1.0, 64.0]))
def test_an_offset_of_the_bias_changes_nothing(case, offset):
    if case.rule["kind"] == "sparsemixer":
        case.rule = dict(kind="sigmoid")
    if "bias" not in case.rule:
        case.rule["bias"] = np.zeros(case.num_experts, np.float32)
    case.rule["bias"] = np.round(case.rule["bias"] * 2**12) / np.float32(2**12)  # so that the sum is exact
    want = case.select()
    case.rule["bias"] += np.float32(offset)
    ref.assert_same_bits(case.select(), want)


@examples
@given(st.lists(rule_cases(), min_size=2, max_size=4))
def test_running_again_gives_the_same_bits(batches):
    selector = _C_testing.Selector()
    for case in (*batches, *batches):
        ref.assert_same_bits(case.select(select=selector.select), case.select())


# --- by hand


def logit(p):
    return float(np.log(p / (1 - p)))


SIGMOIDS = rows(4, {0: logit(0.8), 1: logit(0.5), 2: logit(0.39), 3: logit(0.1)})


def test_weights_are_sigmoids_without_the_bias():
    bias = np.array([0, 0, 0, 1], np.float32)
    got = _C_testing.select(SIGMOIDS, 2, False, kind="sigmoid", bias=bias, scale=2.0)
    assert got["ids"].tolist() == [[3, 0]]
    np.testing.assert_allclose(got["weights"], [[0.2, 1.6]], rtol=1e-6)
    got = _C_testing.select(SIGMOIDS, 2, True, kind="sigmoid", bias=bias, scale=2.0)
    np.testing.assert_allclose(got["weights"], [[2 / 9, 16 / 9]], rtol=1e-6)


@pytest.mark.parametrize("bias", [None, np.zeros(4, np.float32), np.full(4, 100, np.float32)])
def test_keys_of_sigmoids_are_logarithms_of_their_quotients(bias):
    for ratio, kept in ((0.62, 2), (0.63, 1), (0.48, 3), (0.49, 2), (0.124, 4), (0.126, 3)):  # 0.625, 0.4875, 0.125
        got = _C_testing.select(SIGMOIDS, 4, selection=f"skip:ratio={ratio}", kind="sigmoid", bias=bias)
        assert (got["ids"] >= 0).sum() == kept, ratio


def test_groups_are_ranked_by_their_best_or_two_best():
    scores = rows(6, {0: 3.0, 1: -9.0, 2: 2.0, 3: 1.9, 4: 1.0, 5: 0.9})
    chosen = partial(_C_testing.select, scores, 2, kind="sigmoid", num_groups=3)
    assert chosen()["ids"].tolist() == [[0, 1]]
    assert chosen(group_top2=True)["ids"].tolist() == [[2, 3]]
    assert chosen(top_groups=2)["ids"].tolist() == [[0, 2]]
    assert chosen(top_groups=2, group_top2=True)["ids"].tolist() == [[2, 3]]


def test_a_row_without_an_admitted_expert_in_its_groups_keeps_its_first_choice():
    """Most rows want experts 0 and 1, which are admitted; the last takes 2 and 3."""
    scores = rows(4, *[{0: 5.0, 1: 4.0}] * 3, {2: 5.0, 3: 4.0})
    got = _C_testing.select(scores, 2, selection="xshare:m=2,k0=0", num_groups=2)
    assert got["ids"].tolist() == [[0, 1], [0, 1], [0, 1], [2, -1]]
    assert got["weights"][3].tolist() == [1, 0]
    assert got["stats"]["remapped_pairs"] == 1


def test_groups_hold_where_votes_overflow():
    scores = rows(4, {3: 5.0}, {3: 5.0}, {3: 5.0}, {0: 5.0, 1: 5.0})
    got = _C_testing.select(scores, 1, selection="lynx_literal:lambda=1.7e308", num_groups=2)
    assert got["ids"].tolist() == [[3], [3], [3], [0]]


def test_sere_stays_inside_the_groups():
    scores = rows(4, {0: 5.0, 1: 4.0}, {2: 5.0, 3: 4.0}, {2: 4.0, 3: 5.0})
    similarity = np.eye(4, dtype=np.float32)
    similarity[1] = [0.1, 1, 0.9, 0.2]  # nearest to expert 2, of the other group
    got = _C_testing.select(scores, 2, selection="sere:s=1", num_groups=2, similarity=similarity)
    assert got["ids"].tolist() == [[0, 1], [2, 3], [3, 2]]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (dict(kind="tanh"), ["kind", "sparsemixer", "tanh"]),
        (dict(group=2), ["num_groups", "group"]),
        (dict(num_groups=0), ["num_groups", "divisor of 6", "0"]),
        (dict(num_groups=4), ["num_groups", "divisor of 6", "4"]),
        (dict(num_groups=3, top_groups=4), ["top_groups", "1..3", "4"]),
        (dict(num_groups=6, top_groups=1), ["top_groups", "at least 2", "1"]),
        (dict(num_groups=6, top_groups=2, group_top2=True), ["num_groups", "two experts", "6"]),
        (dict(bias=np.zeros(5, np.float32)), ["bias", "[6]", "[5]"]),
        (dict(bias=np.full(6, np.nan, np.float32)), ["bias", "expert 0", "finite"]),
        (dict(scale=float("inf")), ["scale", "finite", "inf"]),
        (dict(scale=-1.0), ["scale", ">= 0", "-1"]),
        (dict(min_sum=float("nan")), ["min_sum", "finite", "nan"]),
        (dict(kind="sparsemixer", jitter=-0.5), ["jitter", ">= 0", "-0.5"]),
        (dict(kind="sparsemixer", num_groups=2, top_groups=2), ["num_groups", "sparsemixer", "2"]),
        (dict(kind="sparsemixer", bias=np.zeros(6, np.float32)), ["bias", "sparsemixer"]),
    ],
)
def test_rules_that_do_not_fit_are_refused(members, words):
    with pytest.raises(ValidationError) as error:
        _C_testing.select(np.zeros((2, 6), np.float32), 2, **members)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_sparsemixer_takes_two():
    with pytest.raises(ValidationError, match=r"top_k.*2 with sparsemixer.*3"):
        _C_testing.select(np.zeros((2, 6), np.float32), 3, kind="sparsemixer")


@pytest.mark.parametrize(
    "rule", [dict(kind="sigmoid"), dict(num_groups=2), dict(bias=np.zeros(4, np.float32)), dict(kind="sparsemixer")]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(rule, bad):
    scores = np.zeros((3, 4), np.float32)
    scores[1, 2] = bad
    with pytest.raises(ValidationError, match=r"row 1, expert 2.*finite"):
        _C_testing.select(scores, 2, **rule)
