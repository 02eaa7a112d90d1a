"""Windows, chunks, sinks, norms, partial and interleaved rotation, clamping, temperature; and multi-head latent attention."""

import numpy as np
import pytest
import reference as ref
import reference_attention as ra
from tolerance import assert_within

from lynx_rt import ValidationError, _C_testing

FREED_BLOCK = np.iinfo(np.int32).min  # kFreedBlock of backend.h


def weights(kind, heads, rng):
    a, g, d = heads
    sizes = {"width": (a * d, g * d), "head": (d, d), "head_after_rope": (d, d)}.get(kind)
    return (
        (None, None) if sizes is None else tuple(ref.weight(1 + 0.3 * rng.standard_normal(n), "float32") for n in sizes)
    )


class Layer:
    """One sequence in pages of a random order, fed piece by piece."""

    def __init__(self, backend, dtype, heads, length, rotated=None, block_size=16, seed=0, **variant):
        rng = np.random.default_rng(seed)
        self.dtype, (self.a, self.g, d) = dtype, heads
        self.qkv = (rng.standard_normal((length, (self.a + 2 * self.g) * d)) * 1.5).astype(np.float32)
        self.cos, self.sin = ref.rope_tables(length, d if rotated is None else rotated)
        norm = variant.get("norm", "none")
        q_norm, k_norm = weights(norm, heads, rng)
        if variant.pop("with_sinks", False):
            variant["sinks"] = ref.weight(rng.standard_normal(self.a) * 2, "float32")
        self.variant = ra.Variant(q_norm=q_norm, k_norm=k_norm, **variant)
        pages = -(-length // block_size)
        self.table, self.block_size = rng.permutation(pages + 2)[:pages].astype(np.int32)[None], block_size
        self.cache = _C_testing.PagedCache(backend, pages + 2, block_size, self.g, d)

    def feed(self, begin, end):
        v = self.variant
        positions, start = np.arange(begin, end, dtype=np.int32), np.array([0, end - begin], np.int32)
        return self.cache.attend(
            self.qkv[begin:end], self.a, v.q_norm, v.k_norm, v.eps, self.cos, self.sin, positions, start, self.table, norm=v.norm,
            interleaved=v.interleaved, clip=v.clip, temperature=v.temperature, window=v.window, chunk=v.chunk, sinks=v.sinks, scale=v.scale,
            v_norm=v.v_norm, v_from_k=v.v_from_k,
        )  # fmt: skip

    def free_behind(self, position):
        """Gives back the pages that no row from `position` on sees: reads of them end the program."""
        first = max(0, position - self.variant.window + 1 if self.variant.window else 0)
        if self.variant.chunk:
            first = max(first, position // self.variant.chunk * self.variant.chunk)
        self.table[:, : first // self.block_size] = FREED_BLOCK

    def expected(self):
        return ra.attention([self.qkv], self.a, self.g, self.variant, self.cos, self.sin, self.dtype)[0]


# heads (A, G, D), length, rotated columns, variant
VARIANTS = {
    "window 1": ((2, 1, 8), 20, None, dict(window=1)),
    "window 7": ((4, 2, 16), 40, None, dict(window=7)),
    "window beyond": ((2, 2, 8), 12, None, dict(window=100)),
    "window over spans": ((2, 1, 8), 1100, None, dict(window=530)),
    "window inside a span": ((17, 1, 6), 600, None, dict(window=20)),
    "chunk": ((4, 1, 10), 37, None, dict(chunk=8)),
    "chunk over spans": ((1, 1, 8), 1100, None, dict(chunk=700)),
    "sinks": ((6, 2, 10), 33, None, dict(with_sinks=True)),
    "sinks, window": ((4, 2, 16), 600, None, dict(with_sinks=True, window=9)),
    "sinks, two spans": ((2, 1, 8), 515, None, dict(with_sinks=True)),
    "scale": ((4, 2, 16), 15, None, dict(scale=0.03)),
    "head": ((4, 2, 16), 15, None, dict(norm="head")),
    "width": ((3, 1, 26), 15, None, dict(norm="width")),
    "after rope": ((4, 2, 16), 15, None, dict(norm="head_after_rope")),
    "unit after rope": ((4, 2, 16), 15, None, dict(norm="unit_after_rope", eps=1e-5)),
    "interleaved": ((4, 2, 16), 15, None, dict(interleaved=True)),
    "partial": ((4, 2, 16), 15, 6, dict(norm="head")),
    "partial, interleaved": ((2, 1, 10), 15, 4, dict(interleaved=True, norm="width")),
    "no rope, odd head": ((2, 2, 7), 9, 0, dict(norm="head")),
    "clip": ((4, 2, 16), 15, None, dict(norm="width", clip=0.9)),
    "temperature": ((4, 1, 8), 30, 0, dict(temperature=(4.0, 0.1))),
    "normed values": ((4, 2, 16), 15, None, dict(norm="head", v_norm=True, scale=1.0)),
    "values are keys": ((3, 1, 26), 40, None, dict(norm="head", v_from_k=True, v_norm=True, eps=1e-3, window=9)),
    "values are keys, clip": ((4, 2, 16), 15, 6, dict(v_from_k=True, clip=0.9)),
    "all": (
        (6, 3, 12),
        50,
        8,
        dict(norm="head_after_rope", interleaved=True, clip=2.0, window=11, with_sinks=True, scale=0.2),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_options(backend, dtype, name):
    heads, length, rotated, variant = VARIANTS[name]
    layer = Layer(backend, dtype, heads, length, rotated, **variant)
    assert_within(layer.feed(0, length), layer.expected(), name)


@pytest.mark.parametrize("name", VARIANTS)
def test_bits_in_pieces(isa, dtype, name):
    """Pieces of any size, pages of any size and any number of threads give the same bits, and pages before the windows are not read."""
    heads, length, rotated, variant = VARIANTS[name]
    whole = (
        Layer(_C_testing.Backend(dtype=dtype, isa=isa), dtype, heads, length, rotated, **variant)
        .feed(0, length)
        .view(np.uint32)
    )
    b = _C_testing.Backend(dtype=dtype, isa=isa, num_threads=3)
    for block_size, piece in ((5, 1 if length < 100 else 67), (16, 6 if length < 100 else 300)):
        layer = Layer(b, dtype, heads, length, rotated, block_size, **variant)
        if block_size == 16:  # another deal of the pages
            layer.table = layer.table[:, ::-1].copy()
        got = []
        for p in range(0, length, piece):
            layer.free_behind(p)
            got.append(layer.feed(p, min(length, p + piece)))
        np.testing.assert_array_equal(np.concatenate(got).view(np.uint32), whole)


class Latent:
    """A sequence of multi-head latent attention: heads, nope, latent and rotated columns."""

    def __init__(self, backend, dtype, sizes, length, block_size=16, interleaved=True, seed=0):
        self.heads, self.nope, self.latent, self.rotated = sizes
        rng = np.random.default_rng(seed)
        width = self.latent + self.rotated
        self.dtype, self.interleaved, self.scale = dtype, interleaved, 1 / np.sqrt(self.nope + self.rotated)
        self.q = rng.standard_normal((length, self.heads * (self.nope + self.rotated))).astype(np.float32)
        self.latent_q = rng.standard_normal((length, self.heads * width)).astype(np.float32)
        self.kv = rng.standard_normal((length, width)).astype(np.float32) * 2
        self.kv_norm = ref.weight(1 + 0.3 * rng.standard_normal(self.latent), "float32")
        self.cos, self.sin = ref.rope_tables(length, self.rotated)
        pages = -(-length // block_size)
        self.table = rng.permutation(pages + 1)[:pages].astype(np.int32)[None]
        self.cache = _C_testing.PagedCache(backend, pages + 1, block_size, 1, width, self.latent)

    def feed(self, begin, end):
        positions, start = np.arange(begin, end, dtype=np.int32), np.array([0, end - begin], np.int32)
        return self.cache.attend_latent(
            self.q[begin:end], self.latent_q[begin:end], self.kv[begin:end], self.heads, self.kv_norm, 1e-6, self.cos, self.sin, positions,
            start, self.table, interleaved=self.interleaved, scale=self.scale,
        )  # fmt: skip

    def expected(self):
        scale = float(np.float32(self.scale))
        return ra.latent_attention(
            self.q,
            self.latent_q,
            self.kv,
            self.heads,
            self.kv_norm,
            1e-6,
            self.cos,
            self.sin,
            self.interleaved,
            scale,
            self.dtype,
        )


LATENT = [
    ((1, 2, 4, 2), 1),
    ((3, 6, 10, 4), 21),
    ((16, 8, 33, 6), 40),
    ((70, 4, 16, 8), 9),
    ((2, 4, 12, 4), 1030),
    ((2, 128, 512, 64), 5),
]


@pytest.mark.parametrize("sizes, length", LATENT, ids=str)
@pytest.mark.parametrize("interleaved", [True, False])
def test_latent(backend, dtype, sizes, length, interleaved):
    layer = Latent(backend, dtype, sizes, length, interleaved=interleaved)
    assert_within(layer.feed(0, length), layer.expected(), str(sizes))


@pytest.mark.parametrize("sizes, length", LATENT[1:5], ids=str)
def test_latent_bits_in_pieces(isa, dtype, sizes, length):
    whole = Latent(_C_testing.Backend(dtype=dtype, isa=isa), dtype, sizes, length).feed(0, length).view(np.uint32)
    b, piece = _C_testing.Backend(dtype=dtype, isa=isa, num_threads=2), 1 if length < 100 else 129
    layer = Latent(b, dtype, sizes, length, block_size=7)
    got = np.concatenate([layer.feed(p, min(length, p + piece)) for p in range(0, length, piece)])
    np.testing.assert_array_equal(got.view(np.uint32), whole)


@pytest.mark.parametrize("heads, rows, k, n", [(1, 0, 3, 4), (3, 1, 5, 7), (4, 18, 33, 16), (2, 40, 64, 50)])
@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16"])
def test_head_linear(backend, dtype, weight_dtype, heads, rows, k, n):
    """Heads whose columns lie apart in x and in out; what lies between in out stays."""
    rng = np.random.default_rng(k)
    first, columns, out_columns, out_column = 2, k + 5, n + 3, 1
    x = rng.standard_normal((rows, heads, columns)).astype(np.float32)
    w = [ref.weight(rng.standard_normal((n, k)), weight_dtype) for _ in range(heads)]
    out = backend.head_linear(x, first, w, out_columns, out_column, fill=7.0)
    for a in range(heads):
        expected = ref.linear(x[:, a, first : first + k], w[a], dtype)
        assert_within(np.ascontiguousarray(out[:, a, out_column : out_column + n]), expected, f"head {a}")
    assert (np.delete(out, np.s_[out_column : out_column + n], 2) == 7).all()
    for t in range(0, rows, 7):
        alone = backend.head_linear(x[t : t + 1], first, w, out_columns, out_column, fill=7.0)
        np.testing.assert_array_equal(alone.view(np.uint32), out[t : t + 1].view(np.uint32))


def test_refused():
    b = _C_testing.Backend()
    with pytest.raises(ValidationError, match="expected V of the same head size"):
        cache = _C_testing.PagedCache(b, 4, 4, 1, 8, 6)
        one = np.zeros((1, 1), np.float32)
        row = np.zeros(1, np.int32)
        cache.attend(
            np.zeros((1, 24), np.float32),
            1,
            None,
            None,
            1e-6,
            one,
            one,
            row,
            np.array([0, 1], np.int32),
            np.zeros((1, 1), np.int32),
        )
    layer = Layer(b, "float32", (2, 1, 8), 4, with_sinks=True)
    layer.variant.sinks = layer.variant.sinks[:1]
    with pytest.raises(ValidationError, match="sinks"):
        layer.feed(0, 4)


@pytest.mark.parametrize("norm", ["none", "head"])
@pytest.mark.parametrize(
    "heads, length", [((1, 1, 2), 1), ((4, 2, 26), 33), ((6, 2, 10), 600), ((17, 1, 8), 20)], ids=str
)
def test_gates(backend, dtype, heads, length, norm):
    """A gate beside each head of q: the result is that without gates times sigmoid(gate), which takes an exponential, a sum and a quotient;
    and the same bits in pieces."""
    a, _, d = heads
    layer = Layer(backend, dtype, heads, length, norm=norm)
    plain, gates = (
        layer.feed(0, length),
        np.random.default_rng(1).standard_normal((length, a, d)).astype(np.float32) * 3,
    )
    q = layer.qkv[:, : a * d].reshape(length, a, d)
    qkv = np.concatenate([np.stack([q, gates], 2).reshape(length, -1), layer.qkv[:, a * d :]], 1)

    def feed(begin, end):
        v = layer.variant
        positions, start = np.arange(begin, end, dtype=np.int32), np.array([0, end - begin], np.int32)
        return layer.cache.attend(
            qkv[begin:end],
            a,
            v.q_norm,
            v.k_norm,
            v.eps,
            layer.cos,
            layer.sin,
            positions,
            start,
            layer.table,
            norm=v.norm,
            gated=True,
        )

    whole = feed(0, length)
    expected = plain.astype(np.float64) / (1 + np.exp(-gates.reshape(length, -1).astype(np.float64)))
    assert_within(whole, (expected, (2.0**-22 + 4 * 2.0**-24) * np.abs(expected)))
    np.testing.assert_array_equal(np.concatenate([feed(0, length // 2), feed(length // 2, length)]), whole)


@pytest.mark.parametrize("keys", [{"norm": "width"}, {"clip": 1.0}, {"temperature": (4.0, 0.1)}])
def test_gates_are_refused(backend, keys):
    cache, one = _C_testing.PagedCache(backend, 2, 4, 1, 4), np.ones(4, np.float32)
    zeros = np.zeros((1, 1), np.int32)
    with pytest.raises(ValidationError, match="gates"):
        cache.attend(np.ones((1, 16), np.float32), 1, one, one, 1e-6, np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), zeros[0],
                     np.array([0, 1], np.int32), zeros, gated=True, **keys)  # fmt: skip
