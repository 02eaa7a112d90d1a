"""Products with quantised weights (csrc/backend/cpu/kernels/quant.h): that header defines every bit, so the tests have no
tolerance but the quantiser's own error. Bits are compared with a reference in NumPy whose float32 operations are those of the header."""

import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st
from isas import SUPPORTED

from lynx_rt import ValidationError, _C_testing

GROUP = 128
ZERO = {"int8": 128, "int4": 8}
SCHEMES = ["int8", "int4"]


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return request.param


def backend_of(isa, scheme, threads=2):
    return _C_testing.Backend(isa=isa, num_threads=threads, quantization=scheme)


def grouped(a):
    """[R, K] -> [R, G, GROUP], padded with zeros."""
    groups = -(-a.shape[1] // GROUP)
    out = np.zeros((a.shape[0], groups * GROUP), a.dtype)
    out[:, : a.shape[1]] = a
    return out.reshape(a.shape[0], groups, GROUP)


def quantize_rows(x):
    """Returns rows as they enter a product: integers [R, G, GROUP], scales [R, G]."""
    x = grouped(x)
    amax = np.abs(x).max(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(amax >= np.float32(1e-30), np.float32(127) / amax, np.float32(0)).astype(np.float32)
        scale = np.where(amax >= np.float32(1e-30), amax / np.float32(127), np.float32(0)).astype(np.float32)
        q = np.rint(x * inverse[..., None])
    bad = ~np.isfinite(x).all(2)
    scale[bad], q[bad] = np.nan, 0
    return q.astype(np.int64), scale


def product(x, weight):
    """Returns the result that linear() must give, bit for bit, from the integers and scales of the weight."""
    q, scales = weight.quantized_values()
    q = grouped(q).astype(np.int64)
    xq, x_scales = quantize_rows(x)
    out = np.zeros((len(x), len(q)), np.float32)
    for g in range(q.shape[1]):
        dots = (xq[:, g] @ q[:, g].T).astype(np.float32)
        out += dots * (scales[None, :, g] * x_scales[:, None, g])
    return out


def equal_bits(got, expected, what=""):
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32), str(what))


# (rows, K, N) around a group of 128 columns, a panel of 16 rows of the weights, 16 and 64 rows of x.
SHAPES = [
    (0, 128, 16), (1, 1, 1), (1, 128, 16), (1, 127, 15), (1, 129, 17), (2, 256, 33), (3, 300, 16), (4, 64, 48), (7, 640, 5), (8, 128, 130),
    (11, 257, 31), (15, 128, 64), (16, 384, 16), (17, 130, 20), (31, 128, 40), (33, 512, 18), (64, 129, 16), (65, 200, 33), (130, 256, 16),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(isa, scheme, shape):
    rows, k, n = shape
    rng = np.random.default_rng(rows + k + n)
    b = backend_of(isa, scheme)
    x, w = rng.standard_normal((rows, k)).astype(np.float32), ref.weight(rng.standard_normal((n, k)), "bfloat16")
    placed = b.place(w)
    expected = product(x, placed)
    equal_bits(b.linear(x, placed), expected, shape)
    add_to = rng.standard_normal((rows, n)).astype(np.float32)
    equal_bits(b.linear(x, placed, add_to=add_to), add_to + expected, shape)


@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16", "float16"])
def test_extremes(isa, scheme, weight_dtype):
    """The largest sums there are, groups of zeros on either side, and magnitudes from 2^-40 to 2^40."""
    b = backend_of(isa, scheme)
    rng = np.random.default_rng(0)
    x, w = np.ones((3, 384), np.float32), np.ones((17, 384), np.float32)
    x[1] *= -1
    x[2, 128:256] = 0
    w[3], w[4, 128:], w[5:] = -1, 0, rng.choice([-1, 1], (12, 384))
    placed = b.place(ref.weight(w, weight_dtype))
    got = b.linear(x, placed)
    equal_bits(got, product(x, placed))
    np.testing.assert_allclose(got[0, :4], [384, 384, 384, -384], rtol=1e-6)
    assert got[2, 0] == pytest.approx(256, rel=1e-6)
    x = (rng.standard_normal((4, 384)) * np.exp2(rng.integers(-40, 41, (4, 384)))).astype(np.float32)
    equal_bits(b.linear(x, placed), product(x, placed))


def test_what_is_not_finite_stays_in_its_row(isa, scheme):
    b = backend_of(isa, scheme)
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((20, 256)).astype(np.float32), rng.standard_normal((16, 256)).astype(np.float32)
    placed = b.place(w)
    clean = b.linear(x, placed)
    x[3, 200], x[7, 0], x[18, 5] = np.nan, np.inf, -np.inf
    got = b.linear(x, placed)
    bad = [3, 7, 18]
    assert np.isnan(got[bad]).all()
    good = np.setdiff1d(np.arange(20), bad)
    equal_bits(got[good], clean[good])
    w[2, 130] = np.inf
    got = b.linear(x[good], b.place(w))
    assert np.isnan(got[:, 2]).all() and np.isfinite(np.delete(got, 2, 1)).all()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_quantizer(data):
    """Each value is one of the nearest two steps of its group's scale, the largest one is met, and every instruction set agrees."""
    scheme = data.draw(st.sampled_from(SCHEMES))
    rows, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    w = (rng.standard_normal((rows, k)) * np.exp2(rng.integers(-20, 20, (rows, 1)))).astype(np.float32)
    w[rng.random(rows) < 0.1] = 0
    values, scales = backend_of(SUPPORTED[-1], scheme).place(w).quantized_values()
    for isa in SUPPORTED:
        other = backend_of(isa, scheme).place(w).quantized_values()
        np.testing.assert_array_equal(values, other[0])
        equal_bits(scales, other[1])
    check_values(scheme, w, values, scales)


def check_values(scheme, w, values, scales):
    lowest, highest = -ZERO[scheme] + (scheme == "int8"), ZERO[scheme] - 1
    assert values.min() >= lowest and values.max() <= highest
    step = np.repeat(np.abs(scales), GROUP, 1)[:, : w.shape[1]].astype(np.float64)
    error = np.abs(w - values * np.repeat(scales, GROUP, 1)[:, : w.shape[1]].astype(np.float64))
    # Half a step, but for int4 values beyond the last one; float32 rounds the scale, its inverse and the product.
    clipped = (scheme == "int4") * (values == highest)
    assert (error <= step * (0.5 + clipped * 0.5 + 2**-15)).all()


@pytest.mark.parametrize("hidden, width", [(1, 33), (128, 128), (129, 127), (300, 200)])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 33, 70])
def test_experts(isa, scheme, hidden, width, rows):
    """Each row gets the bits that it gets alone, from experts with many rows and with one, on one thread and on two."""
    rng = np.random.default_rng(hidden + rows)
    b, one = backend_of(isa, scheme), backend_of(isa, scheme, threads=1)
    gate, up = ([b.place(rng.standard_normal((width, hidden)).astype(np.float32)) for _ in range(3)] for _ in range(2))
    down = [b.place(rng.standard_normal((hidden, width)).astype(np.float32)) for _ in range(3)]
    ids = rng.choice([0, 0, 0, 1], (rows, 1)).astype(np.int32)
    x, weights = rng.standard_normal((rows, hidden)).astype(np.float32), rng.random((rows, 1)).astype(np.float32)
    got = b.expert_ffn(x, gate, up, down, ids, weights)
    equal_bits(one.expert_ffn(x, gate, up, down, ids, weights), got)
    for t in range(0, rows, 5):
        equal_bits(b.expert_ffn(x[t : t + 1], gate, up, down, ids[t : t + 1], weights[t : t + 1]), got[t : t + 1])
    expected = expert_reference(x, gate, up, down, ids, weights)
    # Between the products: silu, whose error may move a value to the next step of the row's scale.
    np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def expert_reference(x, gate, up, down, ids, weights):
    out = np.zeros_like(x)
    for e in range(len(gate)):
        rows = np.flatnonzero(ids[:, 0] == e)
        g, u = (product(x[rows], w[e]).astype(np.float64) for w in (gate, up))
        hidden = (g / (1 + np.exp(-g)) * u).astype(np.float32)
        out[rows] = product(hidden, down[e]) * weights[rows]
    return out


def test_refused():
    b = _C_testing.Backend(quantization="int8")
    w = b.place(np.zeros((16, 8), np.float32))
    with pytest.raises(ValidationError, match=r"\[T, 8\]"):
        b.linear(np.zeros((1, 9), np.float32), w)
    plain = np.zeros((16, 8), np.float32)
    with pytest.raises(ValidationError, match="same dtype"):
        b.mlp(np.zeros((1, 8), np.float32), w, plain, b.place(np.zeros((8, 16), np.float32)))
