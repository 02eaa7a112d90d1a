"""Backend::qkv_post() and attention() through pages, against the oracle, which sees every sequence in one piece."""

import numpy as np
import pytest
import reference as ref
from tolerance import assert_within

from lynx_rt import ValidationError, _C_testing

EPS = 1e-6


class Layer:
    """Sequences in one paged cache, fed piece by piece; pages are dealt in a random order."""

    def __init__(self, backend, dtype, heads, lengths, block_size, norm=True, weight_dtype="float32", seed=0):
        self.rng = rng = np.random.default_rng(seed)
        self.dtype, (self.a, self.g, d), self.block_size = dtype, heads, block_size
        self.qkv = [rng.standard_normal((n, (self.a + 2 * self.g) * d)).astype(np.float32) * 1.5 for n in lengths]
        self.norms = [ref.weight(1 + 0.3 * rng.standard_normal(d), weight_dtype) if norm else None for _ in range(2)]
        self.cos, self.sin = ref.rope_tables(max([*lengths, 1]), d)
        pages = [-(-n // block_size) for n in lengths]
        deal = rng.permutation(sum(pages) + 2)
        self.tables = np.zeros((len(lengths), max([*pages, 1])), np.int32)
        for s, n in enumerate(pages):
            self.tables[s, :n] = deal[sum(pages[:s]) : sum(pages[:s]) + n]
        self.cache = _C_testing.PagedCache(backend, sum(pages) + 2, block_size, self.g, d)
        self.rope_rows = None  # of the rows of the next feed(): the positions

    def feed(self, spans):
        """Rows [begin, end) of each sequence in one call -> their outputs, per sequence."""
        rows = [self.qkv[s][b:e] for s, b, e in spans]
        positions = np.concatenate([np.arange(b, e) for _, b, e in spans] or [[]]).astype(np.int32)
        start = np.cumsum([0] + [e - b for _, b, e in spans]).astype(np.int32)
        tables = self.tables[[s for s, _, _ in spans]]
        out = self.cache.attend(
            np.concatenate(rows),
            self.a,
            *self.norms,
            EPS,
            self.cos,
            self.sin,
            positions,
            start,
            np.ascontiguousarray(tables),
            rope_rows=self.rope_rows,
        )
        return [out[start[i] : start[i + 1]] for i in range(len(spans))]

    def whole(self):
        return self.feed([(s, 0, len(q)) for s, q in enumerate(self.qkv)])

    def expected(self):
        return ref.attention(self.qkv, self.a, self.g, *self.norms, EPS, self.cos, self.sin, self.dtype)


# heads (A, G, D), lengths, page size: groups of 1, 2, 3, 17 and 70 (more than one slice of 64); head sizes off the vector width and around 64 columns
CASES = [
    ((1, 1, 2), [1], 16),
    ((4, 4, 16), [5, 1, 17], 16),
    ((4, 2, 26), [33, 7], 5),
    ((6, 2, 10), [40, 16, 15], 1),
    ((3, 1, 48), [20], 256),
    ((17, 1, 8), [19, 3], 4),
    ((70, 1, 6), [9], 16),
    ((8, 1, 80), [70, 33], 16),
    ((2, 2, 98), [40], 3),
    ((4, 2, 128), [37], 16),
]


@pytest.mark.parametrize("heads, lengths, block_size", CASES, ids=str)
def test_prefill(backend, dtype, heads, lengths, block_size):
    layer = Layer(backend, dtype, heads, lengths, block_size)
    for s, (got, expected) in enumerate(zip(layer.whole(), layer.expected())):
        assert_within(got, expected, f"sequence {s}")


def test_many_keys(backend, dtype):
    """Several spans of 512 keys, with ends before, at and after their bounds."""
    for lengths in ([511, 512, 513], [1025]):
        layer = Layer(backend, dtype, (2, 1, 8), lengths, 16, seed=1)
        for s, (got, expected) in enumerate(zip(layer.whole(), layer.expected())):
            assert_within(got, expected, f"sequence {s}")


def test_norm_weights(backend, dtype, weight_dtype):
    for norm in (True, False):
        layer = Layer(backend, dtype, (4, 2, 24), [11], 4, norm, weight_dtype)
        assert_within(layer.whole()[0], layer.expected()[0])


def test_decode_after_prefill(backend, dtype):
    """Prefill of one sequence beside decode of others, then decode alone: the rows that a step has are not the cache's rows."""
    lengths = [30, 21, 9]
    layer = Layer(backend, dtype, (4, 2, 16), lengths, 8)
    got = [[] for _ in lengths]

    def feed(spans):
        for (s, _, _), rows in zip(spans, layer.feed(spans)):
            got[s].append(rows)

    feed([(0, 0, 25), (1, 0, 16)])
    feed([(1, 16, 17), (0, 25, 26), (2, 0, 5)])
    feed([(2, 5, 6), (1, 17, 18)])
    feed([(0, 26, 30), (1, 18, 21), (2, 6, 9)])
    for s, expected in enumerate(layer.expected()):
        assert_within(np.concatenate(got[s]), expected, f"sequence {s}")


def test_rope_rows(backend, dtype):
    """Rows of the table may be others than the positions, and repeat; masks and pages go by the positions."""
    for lengths in ([13], [21, 6]):
        layer = Layer(backend, dtype, (4, 2, 16), lengths, 8, seed=2)
        rows = [layer.rng.integers(0, len(layer.cos), n).astype(np.int32) for n in lengths]
        layer.rope_rows = np.concatenate(rows)
        got = layer.whole()
        for s, of_sequence in enumerate(rows):
            expected = ref.attention(
                [layer.qkv[s]], 4, 2, *layer.norms, EPS, layer.cos[of_sequence], layer.sin[of_sequence], dtype
            )
            assert_within(got[s], expected[0], f"sequence {s}")


def test_no_rows(backend):
    assert Layer(backend, "float32", (4, 2, 16), [0], 8).whole()[0].shape == (0, 64)


def test_sharp_and_flat_softmax(backend, dtype):
    """Without norms, q and k of size 30 give scores far apart, and zeros give the plain mean of V."""
    layer = Layer(backend, dtype, (2, 1, 16), [24, 24], 8, norm=False)
    layer.qkv[0][:, : 3 * 16] *= 20
    layer.qkv[1][:, : 3 * 16] = 0
    got = layer.whole()
    for s, expected in enumerate(layer.expected()):
        assert_within(got[s], expected, f"sequence {s}")
    v = ref.entering(layer.qkv[1][:, 3 * 16 :], dtype)
    means = np.cumsum(v, 0) / np.arange(1, 25)[:, None]
    np.testing.assert_allclose(got[1][:, :16], means, atol=1e-5)


def test_refused():
    with pytest.raises(ValidationError, match="multiple"):
        Layer(_C_testing.Backend(), "float32", (3, 2, 8), [3], 4).whole()
    layer = Layer(_C_testing.Backend(), "float32", (2, 2, 8), [3], 4)
    layer.cos = layer.sin = np.ones((3, 5), np.float32)
    with pytest.raises(ValidationError, match="rotated columns from 0 to 8, got 10"):
        layer.whole()
