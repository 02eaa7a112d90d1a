"""Backend::embed() and rmsnorm() against the oracle; conversions of every 16-bit pattern; the activation over its whole range."""

import numpy as np
import pytest
import reference as ref
import tolerance as tol
from tolerance import assert_within

from lynx_rt import ValidationError, _C_testing


@pytest.mark.parametrize("rows, width, vocab", [(0, 16, 5), (1, 1, 1), (5, 33, 9), (40, 48, 7)])
def test_embed_is_exact(float_backend, weight_dtype, rows, width, vocab):
    rng = np.random.default_rng(rows + width)
    table, ids = (
        ref.weight(rng.standard_normal((vocab, width)), weight_dtype),
        rng.integers(0, vocab, rows).astype(np.int32),
    )
    np.testing.assert_array_equal(float_backend.embed(table, ids), ref.value(table)[ids])


def test_embed_scale(float_backend, weight_dtype):
    table, ids = (
        ref.weight(np.random.default_rng(0).standard_normal((9, 33)), weight_dtype),
        np.array([8, 0, 3], np.int32),
    )
    np.testing.assert_array_equal(
        float_backend.embed(table, ids, scale=12.1), np.float32(ref.value(table)[ids]) * np.float32(12.1)
    )


def test_conversion_of_every_16_bit_number(float_backend):
    """Subnormal numbers, infinities and zeros of either sign included; NaN stays NaN."""
    bits = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    ids = np.arange(256, dtype=np.int32)
    for table in (bits, bits.view(np.float16)):
        with np.errstate(invalid="ignore"):  # the widening of a signalling NaN
            got, want = float_backend.embed(table, ids), ref.value(table)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got[~np.isnan(want)]), np.signbit(want[~np.isnan(want)]))


@pytest.mark.parametrize(
    "rows, width", [(0, 16), (1, 1), (2, 2), (3, 15), (5, 16), (17, 33), (33, 48), (2, 255), (2, 256), (2, 600)]
)
def test_rmsnorm(float_backend, weight_dtype, rows, width):
    rng = np.random.default_rng(width)
    x = (rng.standard_normal((rows, width)) * np.exp2(rng.integers(-8, 8, (rows, 1)))).astype(np.float32)
    w = ref.weight(rng.standard_normal(width), weight_dtype)
    for eps in (1e-6, 0.1):
        assert_within(float_backend.rmsnorm(x, w, eps), ref.rmsnorm(x, w, eps), f"eps {eps}")


@pytest.mark.parametrize("rows, width", [(0, 16), (1, 1), (3, 15), (17, 33), (33, 48), (2, 600)])
def test_add_rmsnorm(float_backend, weight_dtype, rows, width):
    """What a block adds, normed: to the residual stream or in its place, scaled or not. A row has the bits that it has alone."""
    rng = np.random.default_rng(width)
    y, x = (rng.standard_normal((rows, width)).astype(np.float32) for _ in range(2))
    w, by = ref.weight(rng.standard_normal(width), weight_dtype), ref.weight(np.array([0.7]), weight_dtype)
    for add_to, scale in ((None, None), (x, None), (x, by), (None, by)):
        got = float_backend.add_rmsnorm(y, w, 1e-3, add_to, scale)
        assert_within(got, ref.add_rmsnorm(y, w, 1e-3, add_to, scale))
        if rows:
            alone = float_backend.add_rmsnorm(y[-1:], w, 1e-3, None if add_to is None else add_to[-1:], scale)
            np.testing.assert_array_equal(alone.view(np.uint32), got[-1:].view(np.uint32))
    with pytest.raises(ValidationError, match="scale"):
        float_backend.add_rmsnorm(y, w, 1e-3, x, np.ones(2, np.float32))


@pytest.mark.parametrize(
    "rows, width", [(0, 16), (1, 1), (2, 2), (3, 15), (5, 16), (17, 33), (33, 48), (2, 255), (2, 256), (2, 600)]
)
def test_layernorm(float_backend, weight_dtype, rows, width):
    rng = np.random.default_rng(width)
    x = (
        rng.standard_normal((rows, width)) * np.exp2(rng.integers(-8, 8, (rows, 1))) + rng.standard_normal((rows, 1))
    ).astype(np.float32)
    w, bias = ref.weight(rng.standard_normal(width), weight_dtype), ref.weight(rng.standard_normal(width), "float32")
    for eps in (1e-6, 0.1):
        whole = float_backend.layernorm(x, w, bias, eps)
        assert_within(whole, ref.layernorm(x, w, bias, eps), f"eps {eps}")
        for t in range(0, rows, 5):
            np.testing.assert_array_equal(
                float_backend.layernorm(x[t : t + 1], w, bias, eps)[0].view(np.uint32), whole[t].view(np.uint32)
            )


def test_layernorm_of_equal_values(float_backend):
    x, bias = np.full((2, 20), 3.5, np.float32), np.arange(20, dtype=np.float32)
    np.testing.assert_array_equal(float_backend.layernorm(x, np.ones(20, np.float32), bias, 1e-6), [bias, bias])


def test_rmsnorm_of_zeros(float_backend):
    x = np.zeros((2, 20), np.float32)
    np.testing.assert_array_equal(float_backend.rmsnorm(x, np.ones(20, np.float32), 1e-6), x)


def test_rmsnorm_wrong_shape(float_backend):
    x, long, short = np.zeros((2, 20), np.float32), np.ones(20, np.float32), np.ones(19, np.float32)
    with pytest.raises(ValidationError):
        float_backend.rmsnorm(x, short, 1e-6)
    with pytest.raises(ValidationError, match="bias"):
        float_backend.layernorm(x, long, short, 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_compute_dtype_changes_no_bit(float_backend, isa, dtype, weight_dtype):
    """embed, rmsnorm, layernorm and router keep float32, so that other tests of theirs run over one compute dtype."""
    rng, other = np.random.default_rng(0), _C_testing.Backend(dtype=dtype, isa=isa, num_threads=2)
    for rows, width, n in [(1, 1, 1), (5, 33, 17), (33, 600, 8)]:
        x = (rng.standard_normal((rows, width)) * np.exp2(rng.integers(-8, 8, (rows, 1)))).astype(np.float32)
        w, vector, bias = (ref.weight(rng.standard_normal(shape), weight_dtype) for shape in ((n, width), width, n))
        ids = rng.integers(0, n, rows).astype(np.int32)
        shift = ref.weight(rng.standard_normal(width), "float32")
        calls = [
            lambda b: b.embed(w, ids, scale=1.7),
            lambda b: b.rmsnorm(x, vector, 1e-6),
            lambda b: b.layernorm(x, vector, shift, 1e-6),
            lambda b: b.router(x, w, bias),
        ]
        for call in calls:
            np.testing.assert_array_equal(call(other).view(np.uint32), call(float_backend).view(np.uint32))


def test_silu_over_its_range(isa):
    """One expert of width 1 whose gate passes x on: from where the exponential overflows to where it vanishes."""
    x = np.concatenate([np.linspace(-110, 110, 4001), np.linspace(-1e-3, 1e-3, 101), [-3e4, 3e4, 0]]).astype(
        np.float32
    )[:, None]
    rows = np.concatenate([x, np.ones_like(x)], 1)
    b = _C_testing.Backend(isa=isa)
    gate, up, down = (np.array(w, np.float32) for w in ([[1, 0]], [[0, 1]], [[1], [0]]))
    s = ref.silu(x[:, 0].astype(np.float64))
    assert_within(b.mlp(rows, gate, up, down)[:, 0], (s, tol.SILU * np.abs(s) + tol.SILU_TINY + tol.U32 * np.abs(s)))


@pytest.mark.parametrize("rows, width, stride", [(0, 4, 4), (1, 1, 3), (5, 33, 40), (17, 48, 48)])
def test_set_rows(float_backend, rows, width, stride):
    rng = np.random.default_rng(rows + width)
    given, x = rng.standard_normal((rows, stride)).astype(np.float32), rng.standard_normal((rows, width)).astype(np.float32)
    np.testing.assert_array_equal(float_backend.set_rows(given, x, False), given[:, :width])
    np.testing.assert_array_equal(float_backend.set_rows(given, x, True), x + given[:, :width])


def test_set_rows_refuses_rows_that_overlap(float_backend):
    with pytest.raises(ValidationError, match="from_stride"):
        float_backend.set_rows(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), False)


def test_gelu_over_its_range(isa):
    """As above, without up: both forms, in the far tails and around 0."""
    x = np.concatenate([np.linspace(-14, 14, 4001), np.linspace(-1e-3, 1e-3, 101), [-3e4, 3e4, 0]]).astype(np.float32)[
        :, None
    ]
    b, one = _C_testing.Backend(isa=isa), np.ones((1, 1), np.float32)
    for name, of in (("gelu", ref.gelu), ("gelu_tanh", ref.gelu_tanh)):
        value, error = of(x[:, 0].astype(np.float64))
        assert_within(b.mlp(x, one, None, one, activation=name)[:, 0], (value, error + tol.U32 * np.abs(value)), name)
    assert np.isnan(b.mlp(np.full((1, 1), np.nan, np.float32), one, None, one, activation="gelu")).all()
