"""Checks of every op that keeps a state of each sequence."""

import numpy as np

from lynx_rt import _C_testing


def check_cut_anywhere(make):
    """Pieces of any sizes, alone or in any batch, give the bits of one pass: of the rows and of the states. make() -> a layer with three
    sequences x and their slots, feed(spans), whole(), and layer.state(slot)."""
    whole = make()
    lengths = [len(x) for x in whole.x]
    expected = whole.whole()
    rng = np.random.default_rng(1)
    for most in (1, 2, 3, 16, 40):
        layer, done, got = make(), [0, 0, 0], [[], [], []]
        while any(d < n for d, n in zip(done, lengths)):
            unfinished = [s for s in rng.permutation(3) if done[s] < lengths[s]]
            chosen = unfinished[: rng.integers(1, len(unfinished) + 1)]
            spans = [(s, done[s], min(lengths[s], done[s] + rng.integers(1, most + 1))) for s in chosen]
            for (s, _, end), out in zip(spans, layer.feed(spans)):
                got[s].append(out)
                done[s] = end
        for s in range(3):
            np.testing.assert_array_equal(np.concatenate(got[s]), expected[s])
            np.testing.assert_array_equal(layer.layer.state(layer.slots[s]), whole.layer.state(whole.slots[s]))


def check_threads(isa, make):
    """One thread and three give the same bits. make(backend) -> a layer with two sequences."""
    one, many = (make(_C_testing.Backend(dtype="float32", isa=isa, num_threads=n)).whole() for n in (1, 3))
    for a, b in zip(one, many):
        np.testing.assert_array_equal(a, b)


def check_no_rows(make):
    """A sequence without rows, alone and in a batch, changes nothing. make() -> a layer with two sequences and 8 columns."""
    layer = make()
    assert layer.feed([(0, 0, 0)])[0].shape == (0, 8)
    first = layer.feed([(0, 0, 0), (1, 0, 2)])[1]
    np.testing.assert_array_equal(first, make().whole()[1])
    assert not layer.layer.state(layer.slots[0]).any()
