"""What every op that keeps a state of each sequence must do."""

import numpy as np


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
