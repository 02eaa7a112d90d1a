"""The order guarantee of backend.h: a row's result is the same bits alone and in any batch, with any number of threads."""

import numpy as np
import pytest
import reference as ref
from test_attention import Layer
from test_expert_ffn import make_experts, own_choices

from lynx_rt import _C_testing

ROWS = 41  # several tiles of 4 and of 32, and a rest
SUBSETS = [
    [0],
    [40],
    [3, 2],
    [7, 7, 7],
    list(range(5)),
    list(range(40, -1, -1)),
    list(range(0, 41, 3)),
    list(range(33)),
]


@pytest.fixture
def backends(isa, dtype):
    return [_C_testing.Backend(dtype=dtype, isa=isa, num_threads=n) for n in (1, 2, 3)]


def check(backends, run):
    """run(backend, rows) -> outputs of those rows; every subset, order and thread count gives the bits of the whole batch."""
    whole = run(backends[0], list(range(ROWS)))
    assert np.isfinite(whole).all() and len(np.unique(whole)) > ROWS
    for b in backends:
        for rows in [list(range(ROWS)), *SUBSETS]:
            np.testing.assert_array_equal(run(b, rows).view(np.uint32), whole[rows].view(np.uint32))


def rows_of(width, seed=0):
    return np.random.default_rng(seed).standard_normal((ROWS, width)).astype(np.float32)


@pytest.mark.parametrize("k, n", [(48, 130), (33, 7), (257, 64)])
def test_linear(backends, weight_dtype, k, n):
    x, rng = rows_of(k), np.random.default_rng(1)
    w, bias = ref.weight(rng.standard_normal((n, k)), weight_dtype), ref.weight(rng.standard_normal(n), weight_dtype)
    add_to = rng.standard_normal((ROWS, n)).astype(np.float32)
    check(backends, lambda b, r: b.linear(x[r], w, bias=bias, add_to=add_to[r]))


@pytest.fixture
def float_backends(isa):
    return [_C_testing.Backend(dtype="float32", isa=isa, num_threads=n) for n in (1, 2, 3)]


@pytest.mark.parametrize("k, n", [(48, 130), (33, 7), (257, 64)])
def test_router(float_backends, weight_dtype, k, n):
    x, w = rows_of(k), ref.weight(np.random.default_rng(1).standard_normal((n, k)), weight_dtype)
    check(float_backends, lambda b, r: b.router(x[r], w))


def test_rmsnorm(float_backends, weight_dtype):
    x, w = rows_of(77), ref.weight(np.linspace(-1, 2, 77), weight_dtype)
    check(float_backends, lambda b, r: b.rmsnorm(x[r], w, 1e-6))


@pytest.mark.parametrize("hidden, width", [(48, 20), (257, 150)])
def test_expert_ffn(backends, weight_dtype, hidden, width):
    w, x, rng = make_experts(6, hidden, width, weight_dtype), rows_of(hidden), np.random.default_rng(2)
    ids = own_choices(rng, ROWS, 3, 6)
    ids[5, 1] = ids[6] = -1
    weights = rng.random(ids.shape).astype(np.float32)
    check(backends, lambda b, r: b.expert_ffn(x[r], *w, ids[r], weights[r]))
    check(backends, lambda b, r: b.mlp(x[r], w[0][0], w[1][0], w[2][0]))


def test_attention_over_many_keys(backends, dtype):
    """Spans of 512 keys are tasks of their own where their results fit 4 MiB (the pieces), else a task walks them (the whole)."""
    lengths, heads = [2700, 40], (2, 2, 64)
    whole = [x.view(np.uint32) for x in Layer(backends[0], dtype, heads, lengths, 16).whole()]
    for b in backends[1:]:
        for block_size, ends in ((16, [500, 512, 513, 1535, 1536, 1540, 2699, 2700]), (7, [900, 2690, 2700])):
            layer, begin = Layer(b, dtype, heads, lengths, block_size), 0
            for piece, end in enumerate(ends):
                short = [(1, 5 * piece, 5 * piece + 5)]
                got = layer.feed([*short, (0, begin, end)])
                np.testing.assert_array_equal(got[0].view(np.uint32), whole[1][5 * piece : 5 * piece + 5])
                np.testing.assert_array_equal(got[1].view(np.uint32), whole[0][begin:end])
                begin = end


@pytest.mark.parametrize("heads", [(4, 2, 16), (3, 1, 26), (17, 1, 8)], ids=str)
def test_attention(backends, dtype, heads):
    """The same sequence in pieces of any size, in pages of any size, beside others."""
    lengths = [37, 12]
    whole = Layer(backends[0], dtype, heads, lengths, 16).whole()[0].view(np.uint32)
    for b in backends:
        for block_size in (1, 5, 64):
            np.testing.assert_array_equal(Layer(b, dtype, heads, lengths, block_size).whole()[0].view(np.uint32), whole)
        for piece in (1, 2, 7, 16):
            layer = Layer(b, dtype, heads, lengths, 8)
            got = [layer.feed([(0, p, min(37, p + piece))])[0] for p in range(0, 37, piece)]
            np.testing.assert_array_equal(np.concatenate(got).view(np.uint32), whole)
        layer = Layer(b, dtype, heads, lengths, 8)
        got = [layer.feed([(1, p, p + 1), (0, 3 * p, min(37, 3 * p + 3))])[1] for p in range(12)]
        np.testing.assert_array_equal(np.concatenate(got).view(np.uint32), whole[:36])
