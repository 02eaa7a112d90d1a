"""Backend::expert_ffn() and mlp() against the oracle: routings of every extreme, widths that split into several tasks."""

import numpy as np
import pytest
import reference as ref
import tolerance as tol
from tolerance import assert_within

from lynx_rt import ValidationError, _C_testing


def make_experts(count, hidden, width, weight_dtype, down_dtype=None, seed=0):
    rng = np.random.default_rng(seed)
    scale = 1 / np.sqrt(hidden)

    def matrices(rows, cols, dtype):
        return [ref.weight(rng.standard_normal((rows, cols)) * scale * 2, dtype) for _ in range(count)]

    return (
        matrices(width, hidden, weight_dtype),
        matrices(width, hidden, weight_dtype),
        matrices(hidden, width, down_dtype or weight_dtype),
    )


def own_choices(rng, rows, k, experts):
    return np.array([rng.permutation(experts)[:k] for _ in range(rows)], np.int32).reshape(rows, k)


def all_to_one(rng, rows, k, experts):
    ids = own_choices(rng, rows, k, experts)
    ids[:] = -1
    ids[:, 0] = experts - 1
    return ids


def one_gets_none(rng, rows, k, experts):
    return own_choices(rng, rows, min(k, experts - 1), experts - 1)


def dropped(rng, rows, k, experts):
    ids = own_choices(rng, rows, k, experts)
    ids[rng.random(ids.shape) < 0.5] = -1
    return ids


def nothing(rng, rows, k, experts):
    return np.full((rows, k), -1, np.int32)


ROUTINGS = [own_choices, all_to_one, one_gets_none, dropped, nothing]
# T, k, E, H, I: rows beyond the tile of 96; I and H that are not multiples of 16; the last has several tasks per expert
SHAPES = [
    (0, 2, 4, 16, 8),
    (1, 1, 2, 16, 16),
    (1, 3, 5, 33, 7),
    (5, 4, 4, 48, 33),
    (110, 2, 3, 20, 18),
    (3, 2, 3, 257, 150),
]


@pytest.mark.parametrize("routing", ROUTINGS, ids=lambda r: r.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_expert_ffn(backend, dtype, weight_dtype, routing, shape):
    rows, k, experts, hidden, width = shape
    rng = np.random.default_rng(rows + width)
    w = make_experts(experts, hidden, width, weight_dtype)
    x = rng.standard_normal((rows, hidden)).astype(np.float32)
    ids = routing(rng, rows, k, experts)
    weights = (rng.random(ids.shape) * (ids >= 0)).astype(np.float32)
    got = backend.expert_ffn(x, *w, ids, weights)
    assert_within(got, ref.expert_ffn(x, *w, ids, weights, dtype), f"{shape} {routing.__name__}")
    np.testing.assert_array_equal(got[(ids < 0).all(1)], 0)


@pytest.mark.parametrize("shape", [(0, 16, 8), (1, 1, 1), (1, 48, 56), (7, 33, 31), (40, 64, 300)], ids=str)
def test_mlp(backend, dtype, weight_dtype, shape):
    rows, hidden, width = shape
    gate, up, down = (w[0] for w in make_experts(1, hidden, width, weight_dtype, seed=1))
    x = np.random.default_rng(rows).standard_normal((rows, hidden)).astype(np.float32)
    assert_within(backend.mlp(x, gate, up, down), ref.mlp(x, gate, up, down, dtype), str(shape))


def biases_of(count, hidden, width, dtype="float32"):
    rng = np.random.default_rng(7)
    return [[ref.weight(rng.standard_normal(n), dtype) for _ in range(count)] for n in (width, width, hidden)]


VARIANTS = {
    "biases": dict(biases=True),
    "clamped": dict(clamped_swiglu=(1.702, 1.5)),
    "clamped, biases": dict(biases=True, clamped_swiglu=(1.3, 7.0)),
    "scaled input": dict(scale_input=True),
    "scaled input, biases": dict(biases=True, scale_input=True),
    "gelu": dict(activation="gelu_tanh"),
    "gelu, biases, scaled experts": dict(activation="gelu_tanh", biases=True, scaled_experts=True),
    "scaled experts, scaled input": dict(scale_input=True, scaled_experts=True),
    "gelu without up": dict(activation="gelu_tanh", no_up=True),
    "exact gelu, biases": dict(activation="gelu", biases=True, no_up=True),
    "relu2": dict(activation="relu2", no_up=True),
    "relu2, biases, scaled experts": dict(activation="relu2", biases=True, scaled_experts=True, no_up=True),
    "relu2, scaled input": dict(activation="relu2", scale_input=True, no_up=True),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "shape", [(0, 2, 4, 16, 8), (1, 3, 5, 33, 7), (110, 2, 3, 20, 18), (3, 2, 3, 257, 150)], ids=str
)
def test_biases_and_activations(backend, dtype, name, shape):
    """Biases, the clamped activation, weights on the input: against the oracle, and each row as alone."""
    rows, k, experts, hidden, width = shape
    rng = np.random.default_rng(rows)
    w, x = make_experts(experts, hidden, width, "bfloat16"), rng.standard_normal((rows, hidden)).astype(np.float32)
    ids = dropped(rng, rows, k, experts)
    weights = (rng.random(ids.shape) * (ids >= 0)).astype(np.float32)
    options = dict(VARIANTS[name])
    if options.pop("no_up", False):
        w = w[0], [], w[2]
    if options.get("biases"):
        options["biases"] = biases_of(experts, hidden, width, "bfloat16")
    if options.pop("scaled_experts", False):
        options["expert_scale"] = rng.standard_normal(experts).astype(np.float32)
    got = backend.expert_ffn(x, *w, ids, weights, **options)
    replaced = backend.expert_ffn(x, *w, ids, weights, **options, accumulate=False)
    np.testing.assert_array_equal(replaced, got)
    expected = {"clamped" if key == "clamped_swiglu" else key: v for key, v in options.items()}
    assert_within(got, ref.expert_ffn(x, *w, ids, weights, dtype, **expected), f"{shape} {name}")
    for t in range(0, rows, 9):
        alone = backend.expert_ffn(x[t : t + 1], *w, ids[t : t + 1], weights[t : t + 1], **options)
        np.testing.assert_array_equal(alone.view(np.uint32), got[t : t + 1].view(np.uint32))


def test_no_expert_at_all(backend):
    """Rows without an expert add nothing; where the result replaces what was there, it is 0."""
    w, x = make_experts(2, 16, 8, "float32"), np.ones((3, 16), np.float32)
    ids, weights = np.full((3, 2), -1, np.int32), np.zeros((3, 2), np.float32)
    for accumulate in (True, False):
        np.testing.assert_array_equal(backend.expert_ffn(x, *w, ids, weights, accumulate=accumulate), 0 * x)


@pytest.mark.parametrize("shape", [(0, 16, 8), (1, 1, 1), (7, 33, 31), (40, 64, 300)], ids=str)
def test_mlp_with_gelu(backend, dtype, weight_dtype, shape):
    rows, hidden, width = shape
    gate, up, down = (w[0] for w in make_experts(1, hidden, width, weight_dtype, seed=1))
    x = np.random.default_rng(rows).standard_normal((rows, hidden)).astype(np.float32)
    got = backend.mlp(x, gate, up, down, activation="gelu_tanh")
    assert_within(got, ref.mlp(x, gate, up, down, dtype, activation="gelu_tanh"), str(shape))
    np.testing.assert_array_equal(backend.mlp(x, gate, up, down, activation="gelu_tanh", accumulate=False), got)


@pytest.mark.parametrize("shape", [(0, 16, 8), (1, 1, 1), (7, 33, 31), (40, 64, 300)], ids=str)
def test_mlp_with_relu2(backend, dtype, weight_dtype, shape):
    rows, hidden, width = shape
    gate, _, down = (w[0] for w in make_experts(1, hidden, width, weight_dtype, seed=1))
    x = np.random.default_rng(rows).standard_normal((rows, hidden)).astype(np.float32)
    biases = [b[0] for b in biases_of(1, hidden, width, weight_dtype)]
    for of in (None, biases):
        got = backend.mlp(x, gate, None, down, of, activation="relu2")
        assert_within(
            got, ref.mlp(x, gate, None, down, dtype, of or (None, None, None), activation="relu2"), str(shape)
        )


# T, H, I, N: another number of outputs than inputs.
@pytest.mark.parametrize(
    "shape", [(0, 16, 8, 5), (1, 1, 1, 1), (1, 48, 56, 48), (7, 33, 31, 70), (270, 64, 150, 17)], ids=str
)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_mlp_without_up(backend, dtype, weight_dtype, activation, shape):
    rows, hidden, width, out = shape
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, hidden)).astype(np.float32)
    gate, down = (
        ref.weight(rng.standard_normal(s) / np.sqrt(s[1]) * 2, weight_dtype) for s in ((width, hidden), (out, width))
    )
    biases = [ref.weight(rng.standard_normal(n), weight_dtype) for n in (width, 0, out)]
    for of in (None, biases):
        got = backend.mlp(x, gate, None, down, of, activation=activation)
        assert_within(
            got, ref.mlp(x, gate, None, down, dtype, of or (None, None, None), activation=activation), str(shape)
        )
    wide = backend.mlp(x, gate, None, down, biases, activation=activation, accumulate=False, out_stride=out + 3)
    np.testing.assert_array_equal(wide[:, :out], got)
    assert np.isnan(wide[:, out:]).all()  # those columns are left alone
    for t in range(0, rows, 9):
        alone = backend.mlp(x[t : t + 1], gate, None, down, biases, activation=activation)
        np.testing.assert_array_equal(alone.view(np.uint32), got[t : t + 1].view(np.uint32))


def test_mlp_refuses_a_short_stride(backend):
    w, x = make_experts(1, 16, 8, "float32"), np.ones((1, 16), np.float32)
    with pytest.raises(ValidationError, match="out_stride"):
        backend.mlp(x, w[0][0], w[1][0], w[2][0], out_stride=15)


def test_relu2_belongs_to_experts_without_up(backend):
    w, x = make_experts(1, 16, 8, "float32"), np.ones((1, 16), np.float32)
    for up, activation in ((w[1][0], "relu2"), (w[1][0], "gelu"), (None, "silu")):
        with pytest.raises(ValidationError, match="relu2"):
            backend.mlp(x, w[0][0], up, w[2][0], activation=activation)


@pytest.mark.parametrize("shape", [(0, 16, 8), (1, 1, 1), (7, 33, 31), (40, 64, 300)], ids=str)
def test_mlp_with_gate_and_biases(backend, dtype, weight_dtype, shape):
    """The shared expert of Qwen2-MoE: scaled by a sigmoid of the row's own; and an MLP with biases."""
    rows, hidden, width = shape
    gate, up, down = (w[0] for w in make_experts(1, hidden, width, weight_dtype, seed=1))
    rng = np.random.default_rng(rows)
    x, row_gate = (
        rng.standard_normal((rows, hidden)).astype(np.float32),
        ref.weight(rng.standard_normal((1, hidden)), weight_dtype),
    )
    value, error = ref.mlp(x, gate, up, down, dtype)
    logit, logit_error = ref.router(x, row_gate)
    by = 1 / (1 + np.exp(-logit))  # its slope is 1/4 at most; exp, sum and quotient are within 4 units
    by_error = logit_error / 4 + 4 * tol.U32 * by
    assert_within(
        backend.mlp(x, gate, up, down, row_gate=row_gate),
        (by * value, by * error + by_error * (np.abs(value) + error) + 2 * tol.U32 * np.abs(by * value)),
    )
    assert_within(
        backend.mlp(x, gate, up, down, row_gate=row_gate, scale=0.3),
        (0.3 * by * value, 0.3 * (by * error + by_error * (np.abs(value) + error) + 4 * tol.U32 * np.abs(by * value))),
    )
    biases = [b[0] for b in biases_of(1, hidden, width, weight_dtype)]
    assert_within(backend.mlp(x, gate, up, down, biases), ref.mlp(x, gate, up, down, dtype, biases))


# Widths and row counts around the tiles, as in test_linear.py.
@pytest.mark.parametrize("hidden, width", [(1, 33), (31, 17), (32, 16), (33, 15), (63, 1), (100, 33), (100, 100)])
@pytest.mark.parametrize("down_dtype", ["float32", "bfloat16"])
def test_partial_tiles(backend, dtype, weight_dtype, down_dtype, hidden, width):
    """Experts with 1, 2, 15, 16, 17, 33, 55 and 110 rows give each row the bits that it gets alone."""
    counts = (1, 2, 15, 16, 17, 33, 55, 110)
    w = make_experts(len(counts), hidden, width, weight_dtype, down_dtype)
    rng = np.random.default_rng(hidden + width)
    ids = rng.permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))[:, None].copy()
    x, weights = rng.standard_normal((len(ids), hidden)).astype(np.float32), np.ones(ids.shape, np.float32)
    whole = backend.expert_ffn(x, *w, ids, weights)
    assert_within(whole, ref.expert_ffn(x, *w, ids, weights, dtype), f"{hidden} {width}")
    for t in range(0, len(ids), 7):
        alone = backend.expert_ffn(x[t : t + 1], *w, ids[t : t + 1], weights[:1])
        np.testing.assert_array_equal(alone.view(np.uint32), whole[t : t + 1].view(np.uint32))


@pytest.mark.parametrize("down_dtype", ["float32", "bfloat16", "float16"])
def test_down_in_another_dtype(backend, dtype, weight_dtype, down_dtype):
    w = make_experts(3, 40, 25, weight_dtype, down_dtype)
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal((6, 40)).astype(np.float32), own_choices(rng, 6, 2, 3)
    weights = rng.random((6, 2)).astype(np.float32)
    assert_within(backend.expert_ffn(x, *w, ids, weights), ref.expert_ffn(x, *w, ids, weights, dtype))


FORMATS = ["float32", "bfloat16", "float16", "int8", "int4"]


@pytest.mark.parametrize("hidden, width", [(20, 18), (257, 150), (130, 300)])
def test_formats_of_one_layer_may_differ(backend, isa, dtype, hidden, width):
    """Every pair of formats that gate and down can have, in one layer: each row has the bits that its expert gives it in a layer of
    its own."""
    formats = [(into, down) for into in FORMATS for down in FORMATS]
    quantizers = {name: _C_testing.Backend(dtype=dtype, isa=isa, quantization=name) for name in ("int8", "int4")}

    def matrix(values, name):
        return quantizers[name].place(values) if name in quantizers else ref.weight(values, name)

    rng = np.random.default_rng(hidden)
    gate, up = (
        [matrix(rng.standard_normal((width, hidden)).astype(np.float32), into) for into, _ in formats] for _ in range(2)
    )
    down = [matrix(rng.standard_normal((hidden, width)).astype(np.float32), name) for _, name in formats]
    rows = 70
    x = rng.standard_normal((rows, hidden)).astype(np.float32)
    ids = rng.integers(-1, len(formats), (rows, 1)).astype(np.int32)
    ids[: rows // 3] = 1  # several tiles of one expert beside few rows of the others
    weights = rng.random((rows, 1)).astype(np.float32)
    got = backend.expert_ffn(x, gate, up, down, ids, weights)
    for e in range(len(formats)):
        mine = np.where(ids == e, 0, -1).astype(np.int32)
        alone = backend.expert_ffn(x, [gate[e]], [up[e]], [down[e]], mine, weights)
        of_expert = ids[:, 0] == e
        assert np.isfinite(alone).all() and (alone[of_expert] != 0).any(1).all(), formats[e]
        np.testing.assert_array_equal(got[of_expert].view(np.uint32), alone[of_expert].view(np.uint32), str(formats[e]))
    assert len(np.unique(ids)) > len(formats) // 2
    np.testing.assert_array_equal(got[ids[:, 0] < 0], 0)


def test_weight_zero_and_sign():
    """A weight of 0 adds nothing; the order of a row's slots does not change what is chosen."""
    b, w = _C_testing.Backend(), make_experts(4, 16, 8, "float32")
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    ids = np.array([[0, 3], [2, 1]], np.int32)
    alone = b.expert_ffn(x, *w, ids[:, :1], np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(b.expert_ffn(x, *w, ids, np.array([[1, 0], [1, 0]], np.float32)), alone)


def test_wrong_shapes():
    b, (gate, up, down) = _C_testing.Backend(), make_experts(2, 16, 8, "float32")
    x, ids, weights = np.zeros((1, 16), np.float32), np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32)
    with pytest.raises(ValidationError, match="up"):
        b.expert_ffn(x, gate, [up[0], up[1][:4]], down, ids, weights)
    with pytest.raises(ValidationError, match="down_bias"):
        biases = biases_of(2, 16, 8)
        b.expert_ffn(x, gate, up, down, ids, weights, biases=[biases[0], biases[1], biases[1]])
    with pytest.raises(ValidationError, match="row_gate"):
        b.mlp(x, gate[0], up[0], down[0], row_gate=np.zeros((1, 15), np.float32))
    with pytest.raises(ValidationError, match="down"):
        b.expert_ffn(x, gate, up, [down[0], down[1][:8]], ids, weights)
    with pytest.raises(ValidationError, match="dtype"):
        b.expert_ffn(x, gate, [up[0], up[1].astype(np.float16)], down, ids, weights)
    with pytest.raises(ValidationError, match="top_k"):
        b.expert_ffn(x, gate, up, down, np.zeros((1, 3), np.int32), np.ones((1, 3), np.float32))
