"""Backend::attention() without a causal mask: every row sees all keys of its sequence. Images are attended to so."""

import itertools

import numpy as np
import pytest
import reference as ref
import reference_attention as ra
from tolerance import assert_within

from lynx_rt import ValidationError, _C_testing

FULL = ra.Variant(causal=False)


class Images:
    """Sequences in one paged cache, all rows of each at once; pages are dealt in a random order."""

    def __init__(self, backend, dtype, heads, lengths, block_size=16, seed=0, variant=FULL):
        rng = np.random.default_rng(seed)
        self.backend, self.dtype, (self.a, self.g, self.d), self.block_size, self.variant = (
            backend,
            dtype,
            heads,
            block_size,
            variant,
        )
        self.qkv = [rng.standard_normal((n, (self.a + 2 * self.g) * self.d)).astype(np.float32) * 1.5 for n in lengths]
        self.cos, self.sin = ref.rope_tables(max([*lengths, 1]), self.d)
        self.rng = rng

    def run(self, chosen=None, **options):
        """Attends within the chosen sequences, in one step -> their outputs."""
        of = [self.qkv[s] for s in (range(len(self.qkv)) if chosen is None else chosen)]
        pages = [-(-len(x) // self.block_size) for x in of]
        deal = self.rng.permutation(sum(pages) + 2)
        tables = np.zeros((len(of), max([*pages, 1])), np.int32)
        for s, n in enumerate(pages):
            tables[s, :n] = deal[sum(pages[:s]) : sum(pages[:s]) + n]
        cache = _C_testing.PagedCache(self.backend, sum(pages) + 2, self.block_size, self.g, self.d)
        start = np.cumsum([0] + [len(x) for x in of]).astype(np.int32)
        positions = np.concatenate([np.arange(len(x)) for x in of]).astype(np.int32)
        out = cache.attend(
            np.concatenate(of), self.a, None, None, 0.0, self.cos, self.sin, positions, start, tables, sinks=self.variant.sinks,
            causal=False, **options,
        )  # fmt: skip
        return [out[b:e] for b, e in itertools.pairwise(start)]

    def expected(self):
        return ra.attention(self.qkv, self.a, self.g, self.variant, self.cos, self.sin, self.dtype)


# heads (A, G, D), lengths, page size: heads of 4 to 80 columns, of which 72 is that of Qwen's towers; groups of 1, 2 and 17; lengths around
# tiles and spans.
CASES = [
    ((1, 1, 2), [1], 16),
    ((2, 2, 72), [64, 1, 33], 16),
    ((3, 3, 12), [5, 17, 40], 16),
    ((4, 2, 26), [33, 7], 5),
    ((2, 2, 10), [16, 15], 1),
    ((17, 1, 8), [19, 3], 4),
    ((1, 1, 80), [70], 16),
    ((1, 1, 4), [511, 513], 16),
    ((1, 1, 72), [1030], 16),
]


@pytest.mark.parametrize("heads, lengths, block_size", CASES, ids=str)
def test_all_keys_are_seen(backend, dtype, heads, lengths, block_size):
    images = Images(backend, dtype, heads, lengths, block_size)
    for s, (got, expected) in enumerate(zip(images.run(), images.expected())):
        assert_within(got, expected, f"sequence {s}")


def test_sinks(backend, dtype):
    variant = ra.Variant(causal=False, sinks=np.array([0.5, -3, 2], np.float32))
    images = Images(backend, dtype, (3, 1, 10), [21, 600], variant=variant)
    for got, expected in zip(images.run(), images.expected()):
        assert_within(got, expected)


def test_far_scores(backend, dtype):
    """Scores so far apart that one key has all the weight, and equal ones, whose result is the mean of V."""
    images = Images(backend, dtype, (2, 2, 72), [80, 40])
    images.qkv[0][:, : 4 * 72] *= 8
    images.qkv[1][:, : 4 * 72] = 0
    got = images.run()
    for s, expected in enumerate(images.expected()):
        assert_within(got[s], expected, f"sequence {s}")


def test_bits_are_those_of_the_sequence_alone(backend, isa, dtype):
    images = Images(backend, dtype, (2, 1, 72), [40, 3, 530])
    together = images.run()
    for s in range(3):
        np.testing.assert_array_equal(images.run([s])[0], together[s])
    images.backend = _C_testing.Backend(dtype=dtype, isa=isa, num_threads=3)
    for one, other in zip(images.run(), together):
        np.testing.assert_array_equal(one, other)


def test_no_window_without_a_mask(backend, dtype):
    images = Images(backend, dtype, (2, 1, 8), [4])
    for option in ("window", "chunk"):
        with pytest.raises(ValidationError, match="no window or chunk"):
            images.run(**{option: 3})
