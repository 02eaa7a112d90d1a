"""Backend::linear(), logits() and router() against the oracle, and their argument checks."""

import ctypes
import mmap

import numpy as np
import pytest
import reference as ref
from tolerance import assert_within

from lynx_rt import ValidationError, _C_testing

# Rows 0, 1, a tile (4) and what is left of one; K around the vector widths 16 and 32; N around the tile of 4.
SHAPES = [
    (0, 16, 4), (1, 1, 1), (1, 16, 4), (1, 257, 33), (2, 7, 3), (3, 31, 5), (4, 32, 4), (5, 33, 17), (7, 15, 130), (33, 48, 6),
    (2, 64, 300), (6, 1000, 9),
]  # fmt: skip


def make(shape, weight_dtype, seed=0):
    rows, k, n = shape
    rng = np.random.default_rng(seed + 1000 * rows + k + n)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    return x, ref.weight(rng.standard_normal((n, k)), weight_dtype), rng


@pytest.mark.parametrize("shape", SHAPES)
def test_linear(backend, dtype, weight_dtype, shape):
    x, w, _ = make(shape, weight_dtype)
    assert_within(backend.linear(x, w), ref.linear(x, w, dtype), str(shape))


# Around tiles of 16 weight rows, 32 columns and 16 or 32 rows of x: beyond them, short of them, and far short.
PARTIAL_N, PARTIAL_K, PARTIAL_M = (1, 15, 16, 17, 33, 47), (1, 31, 32, 33, 63, 100), (1, 2, 15, 16, 17, 33, 55, 70)


@pytest.mark.parametrize("k", PARTIAL_K)
def test_partial_tiles(backend, dtype, weight_dtype, k):
    """Fewer rows or fewer weights give the same bits of what is left, with and without an output to add to."""
    x, w, rng = make((max(PARTIAL_M), k, max(PARTIAL_N)), weight_dtype)
    add_to = rng.standard_normal((len(x), len(w))).astype(np.float32)
    whole, added = backend.linear(x, w), backend.linear(x, w, add_to=add_to)
    assert_within(whole, ref.linear(x, w, dtype), str(k))
    assert_within(added, ref.linear(x, w, dtype, add_to=add_to), str(k))
    for n in PARTIAL_N:
        for m in PARTIAL_M:
            got = backend.linear(x[:m], w[:n]), backend.linear(x[-m:], w[-n:], add_to=add_to[-m:, -n:].copy())
            np.testing.assert_array_equal(got[0].view(np.uint32), whole[:m, :n].copy().view(np.uint32), f"{m} {n}")
            np.testing.assert_array_equal(got[1].view(np.uint32), added[-m:, -n:].copy().view(np.uint32), f"{m} {n}")


@pytest.mark.parametrize("m", [33, 55, 70])
def test_several_tiles_of_weights(isa, dtype, weight_dtype, m):
    """One thread and 600 weight rows: tasks of 80, the last of 40. Each row has the bits that it has alone."""
    backend = _C_testing.Backend(dtype=dtype, isa=isa, num_threads=1)
    x, w, rng = make((m, 68, 600), weight_dtype)
    add_to = rng.standard_normal((m, len(w))).astype(np.float32)
    whole, added = backend.linear(x, w), backend.linear(x, w, add_to=add_to)
    assert_within(whole, ref.linear(x, w, dtype))
    assert_within(added, ref.linear(x, w, dtype, add_to=add_to))
    for t in range(m):
        np.testing.assert_array_equal(backend.linear(x[t : t + 1], w).view(np.uint32), whole[t : t + 1].view(np.uint32))


@pytest.mark.parametrize("n, k", [(600, 68), (600, 64), (17, 33)])
def test_reads_nothing_behind_the_weights(isa, dtype, weight_dtype, n, k):
    """The last weight row ends where memory that may not be read begins; reading on would end this process."""
    x, w, _ = make((55, k, n), weight_dtype)
    page = mmap.PAGESIZE
    room = (w.nbytes + page - 1) // page * page
    memory = mmap.mmap(-1, room + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + room), ctypes.c_size_t(page), 0) == 0
    at_the_end = np.frombuffer(memory, w.dtype, w.size, room - w.nbytes).reshape(w.shape)
    at_the_end[:] = w
    backend = _C_testing.Backend(dtype=dtype, isa=isa, num_threads=1)
    np.testing.assert_array_equal(backend.linear(x, at_the_end), backend.linear(x, w))


@pytest.mark.parametrize("bias_dtype", ["float32", "bfloat16", "float16"])
def test_bias_and_accumulate(backend, dtype, weight_dtype, bias_dtype):
    for shape in [(1, 33, 5), (5, 40, 70)]:
        x, w, rng = make(shape, weight_dtype)
        bias = ref.weight(rng.standard_normal(shape[2]), bias_dtype)
        add_to = rng.standard_normal((shape[0], shape[2])).astype(np.float32)
        assert_within(backend.linear(x, w, bias=bias), ref.linear(x, w, dtype, bias), "bias")
        assert_within(backend.linear(x, w, add_to=add_to), ref.linear(x, w, dtype, add_to=add_to), "add_to")
        assert_within(backend.linear(x, w, bias=bias, add_to=add_to), ref.linear(x, w, dtype, bias, add_to), "both")


def test_magnitudes(backend, dtype, weight_dtype):
    """Columns from 2^-20 to 2^12, and terms that cancel: the bound follows the sum of the absolute products."""
    x, w, rng = make((3, 96, 8), weight_dtype)
    x *= np.exp2(rng.integers(-20, 13, 96)).astype(np.float32)
    x[:, 48:] = -x[:, :48]
    w = ref.weight(np.concatenate([ref.value(w)[:, :48]] * 2, 1), weight_dtype)
    assert_within(backend.linear(x, w), ref.linear(x, w, dtype))


def test_rounding_where_the_contract_says(isa):
    """x = 1 + 2^-9 is 1 in bfloat16, 1 + 2^-12 is 1 in float16; float32 and the router keep both."""
    w = np.ones((1, 1), np.float32)
    for dtype, small in [("bfloat16", 2.0**-9), ("float16", 2.0**-12)]:
        x = np.array([[1 + small]], np.float32)
        b = _C_testing.Backend(dtype=dtype, isa=isa)
        assert b.linear(x, w)[0, 0] == 1 and b.router(x, w)[0, 0] == x[0, 0]
        assert _C_testing.Backend(dtype="float32", isa=isa).linear(x, w)[0, 0] == x[0, 0]
    # Half way between two bfloat16 numbers: to the even one.
    b = _C_testing.Backend(dtype="bfloat16", isa=isa)
    x = np.array([[1 + 2.0**-8], [1 + 3 * 2.0**-8]], np.float32)
    assert b.linear(x, w).ravel().tolist() == [1, 1 + 4 * 2.0**-8]


@pytest.mark.parametrize("shape", [(0, 8, 3), (1, 33, 8), (5, 48, 12), (33, 64, 130)])
def test_router(float_backend, weight_dtype, shape):
    x, w, _ = make(shape, weight_dtype)
    assert_within(float_backend.router(x, w), ref.router(x, w), str(shape))


def test_wrong_shapes():
    b = _C_testing.Backend()
    x, w = np.zeros((2, 4), np.float32), np.zeros((3, 5), np.float32)
    with pytest.raises(ValidationError, match=r"\[T, 5\]"):
        b.linear(x, w)
    with pytest.raises(ValidationError, match="bias"):
        b.linear(np.zeros((2, 5), np.float32), w, bias=np.zeros(4, np.float32))
    with pytest.raises(ValidationError):
        b.linear(x, np.zeros((3, 4), np.float64))
    with pytest.raises(ValidationError):
        b.linear(x, np.zeros((4, 8), np.float32)[:, ::2])
    with pytest.raises(ValidationError, match="dtype"):
        _C_testing.Backend(dtype="int8")
    with pytest.raises(ValidationError, match="isa"):
        _C_testing.Backend(isa="sse2")


@pytest.mark.parametrize("shape", [(0, 16, 4), (1, 1, 1), (5, 33, 17), (33, 48, 130)])
def test_scale(backend, dtype, weight_dtype, shape):
    """Granite's multipliers: the product and its bias are scaled, what they are added to is not."""
    x, w, rng = make(shape, weight_dtype)
    bias, add_to = (
        ref.weight(rng.standard_normal(shape[2]), weight_dtype),
        rng.standard_normal((shape[0], shape[2])).astype(np.float32),
    )
    for options in ({}, {"bias": bias}, {"bias": bias, "add_to": add_to}):
        got = backend.linear(x, w, scale=0.22, **options)
        assert_within(got, ref.linear(x, w, dtype, scale=0.22, **options), str(options.keys()))
        for t in range(0, shape[0], 7):
            alone = {k: v[t : t + 1] if k == "add_to" else v for k, v in options.items()}
            alone = backend.linear(x[t : t + 1], w, scale=0.22, **alone)
            np.testing.assert_array_equal(alone.view(np.uint32), got[t : t + 1].view(np.uint32))


def test_router_bias(float_backend, weight_dtype):
    x, w, rng = make((5, 33, 17), weight_dtype)
    bias = ref.weight(rng.standard_normal(17), weight_dtype)
    assert_within(float_backend.router(x, w, bias), ref.router(x, w, bias))
    assert_within(float_backend.router(x, w, bias, scale=0.3), ref.router(x, w, bias, scale=0.3))
    with pytest.raises(ValidationError, match="bias"):
        float_backend.router(x, w, bias[:16])


@pytest.mark.parametrize("shape", [(0, 16, 4), (1, 1, 1), (5, 33, 17), (9, 48, 1300)])
def test_soft_cap(backend, dtype, weight_dtype, shape):
    """Bounded logits, also where they are far below the bound, near it, and infinite."""
    x, w, _ = make(shape, weight_dtype)
    for scale, cap in ((1.0, 30.0), (40.0, 2.5), (1e-3, 1.0)):
        got = backend.logits(x, w, scale=scale, soft_cap=cap)
        assert_within(got, ref.logits(x, w, dtype, scale, cap), f"{scale} {cap}")
        for t in range(0, shape[0], 4):
            alone = backend.logits(x[t : t + 1], w, scale=scale, soft_cap=cap)
            np.testing.assert_array_equal(alone.view(np.uint32), got[t : t + 1].view(np.uint32))
    big = np.full((1, 1), 6e4, np.float32)
    np.testing.assert_array_equal(
        backend.logits(big, np.float32([[1], [-1], [10], [0]]), soft_cap=7.0), [[7, -7, 7, 0]]
    )
    with pytest.raises(ValidationError, match="soft_cap"):
        backend.logits(x, w, soft_cap=-1.0)
