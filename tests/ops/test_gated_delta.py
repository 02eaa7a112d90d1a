"""Backend::gated_delta_rule() against float64, cut into pieces in every way, alone and in batches."""

import numpy as np
import pytest
import reference as ref
from reference_gated_delta import gated_delta
from sequences import check_cut_anywhere, check_no_rows, check_threads
from tolerance import assert_within

from lynx_rt import ValidationError, _C_testing

EPS = 1e-6


class Layer:
    """One layer with random weights. order: columns lie by key head, as in Qwen3-Next, or kind by kind, as in Qwen3.5, or so and with
    tiled value heads, as in llama.cpp's files."""

    def __init__(
        self, backend, shape, lengths, order="by kind", seed=0, norm_dtype="float32", slots=None, by_channel=False
    ):
        rng = np.random.default_rng(seed)
        self.shape = kh, vh, dk, dv, width = shape
        r, grouped, self.tiled = vh // kh, order == "by head", order == "tiled"
        sizes = {"q": dk, "k": dk, "v": r * dv, "z": r * dv, "b": r, "a": r * dk if by_channel else r}
        first, at, stride = 0, [], sum(sizes.values()) + 3
        for size in sizes.values():
            at.append((first, stride if grouped else size))
            first += size if grouped else size * kh
        self.at, columns = at, kh * stride if grouped else first + 3
        self.x = [rng.standard_normal((n, columns)).astype(np.float32) for n in lengths]
        self.conv = (0.7 * rng.standard_normal((width, 2 * kh * dk + vh * dv))).astype(np.float32)
        self.a_log, self.dt_bias = (
            rng.uniform(-2, 1.5, vh).astype(np.float32),
            rng.standard_normal(vh * dk if by_channel else vh).astype(np.float32),
        )
        self.by_channel = (
            by_channel  # Kimi delta attention: a decay for each row of a state, and the output's gate a sigmoid
        )
        self.norm = ref.weight(1 + 0.3 * rng.standard_normal(dv), norm_dtype)
        self.slots = list(rng.permutation(len(lengths) + 2)[: len(lengths)]) if slots is None else slots
        self.layer = _C_testing.GatedDelta(backend, len(lengths) + 2, shape, self.tiled, by_channel)
        self.widths = sizes  # columns of a key head

    def feed(self, spans):
        """Rows [begin, end) of each sequence in one call -> their outputs, per sequence."""
        start = np.cumsum([0] + [e - b for _, b, e in spans]).astype(np.int32)
        out = self.layer.run(
            np.concatenate([self.x[s][b:e] for s, b, e in spans]), self.at, self.filters(), -np.exp(self.a_log), self.dt_bias, self.norm,
            EPS, np.array([self.slots[s] for s, _, _ in spans], np.int32), start, sigmoid_gate=self.by_channel,
        )  # fmt: skip
        return [out[start[i] : start[i + 1]] for i in range(len(spans))]

    def filters(self):
        kh, _, dk, _, _ = self.shape
        return [np.ascontiguousarray(part) for part in np.split(self.conv, [kh * dk, 2 * kh * dk], 1)]

    def whole(self):
        return self.feed([(s, 0, len(x)) for s, x in enumerate(self.x)])

    def expected(self, s):
        kh, vh, dk, dv, _ = self.shape
        parts = []
        for (first, stride), size in zip(self.at, self.widths.values()):
            index = first + stride * np.arange(kh)[:, None] + np.arange(size)
            parts.append(self.x[s][:, index.ravel()])
        n, heads = (
            len(self.x[s]),
            [(kh, dk), (kh, dk), (vh, dv), (vh, dv), (vh,), (vh, dk) if self.by_channel else (vh,)],
        )
        parts = [part.reshape(n, *shape) for part, shape in zip(parts, heads)]
        dt_bias = self.dt_bias.reshape(vh, dk) if self.by_channel else self.dt_bias
        arrays = [ref.value(x) for x in (*parts, self.conv, self.a_log, dt_bias, self.norm)]
        return gated_delta(*arrays, EPS, self.tiled, sigmoid_gate=self.by_channel)


# (key heads, value heads, dk, dv, width): one to three value heads of a key head, sizes off the vector width and around 32 columns
CASES = [
    ((1, 1, 1, 1, 2), [1]),
    ((1, 1, 16, 16, 4), [5, 1, 17]),
    ((2, 4, 8, 12, 4), [70, 33]),
    ((2, 6, 10, 33, 3), [3, 40, 1]),
    ((3, 3, 24, 32, 2), [9, 2]),
    ((1, 3, 17, 65, 4), [20]),
    ((2, 2, 128, 128, 4), [66]),
    ((1, 2, 96, 40, 16), [21, 1]),
]


@pytest.mark.parametrize("order", ["by kind", "by head", "tiled", "by channel"])
@pytest.mark.parametrize("shape, lengths", CASES, ids=str)
def test_against_float64(float_backend, shape, lengths, order):
    """by channel: the columns kind by kind, and a decay for each row of a state."""
    layer = Layer(float_backend, shape, lengths, order, by_channel=order == "by channel")
    for s, got in enumerate(layer.whole()):
        expected, matrix, past = layer.expected(s)
        assert_within(got, expected, f"sequence {s}")
        state, size = layer.layer.state(layer.slots[s]), matrix[0].size
        assert_within(state[:size].reshape(matrix[0].shape), matrix, f"state of sequence {s}")
        np.testing.assert_array_equal(state[size:].astype(np.float64), past.ravel())


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 8, 12, 4), (1, 3, 17, 65, 3), (2, 2, 5, 40, 16)], ids=str)
def test_cut_anywhere(float_backend, shape, by_channel):
    check_cut_anywhere(lambda: Layer(float_backend, shape, [47, 20, 1], by_channel=by_channel))


def test_threads(isa):
    check_threads(isa, lambda backend: Layer(backend, (2, 4, 24, 70, 4), [33, 9]))


def test_norm_dtypes(float_backend, weight_dtype):
    layer = Layer(float_backend, (2, 2, 8, 20, 4), [11], norm_dtype=weight_dtype)
    assert_within(layer.whole()[0], layer.expected(0)[0], weight_dtype)


def test_no_rows(float_backend):
    check_no_rows(lambda: Layer(float_backend, (1, 2, 4, 4, 4), [3, 2]))


def test_long_decay(float_backend):
    """Gates at their ends: states that are forgotten at once, and states that are kept whole."""
    for a_log in (-30.0, 5.0):
        layer = Layer(float_backend, (1, 2, 8, 8, 4), [40])
        layer.a_log = np.full(2, a_log, np.float32)
        assert_within(layer.whole()[0], layer.expected(0)[0], f"a_log {a_log}")


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda a: a["conv"].__setitem__(0, a["conv"][0][:, 1:].copy()), "conv"),
        (lambda a: a.update(rate=a["rate"][1:].copy()), "rate"),
        (lambda a: a.update(norm=a["norm"][1:].copy()), "norm"),
        (lambda a: a.update(x=a["x"][:, :40].copy()), "columns reach past x_stride"),
    ],
)
def test_wrong_arguments(float_backend, change, text):
    layer = Layer(float_backend, (2, 4, 8, 12, 4), [3])
    names = ("x", "at", "conv", "rate", "dt_bias", "norm", "eps", "slots", "query_start")
    values = (
        layer.x[0],
        layer.at,
        layer.filters(),
        layer.a_log,
        layer.dt_bias,
        layer.norm,
        EPS,
        np.zeros(1, np.int32),
        np.array([0, 3], np.int32),
    )
    arguments = dict(zip(names, values))
    change(arguments)
    with pytest.raises(ValidationError, match=text):
        layer.layer.run(**arguments)


def test_wrong_shapes(float_backend):
    for shape, text in (((2, 3, 8, 8, 4), "multiple"), ((1, 1, 8, 8, 1), "2 to 16"), ((1, 1, 8, 8, 17), "2 to 16")):
        layer = Layer(float_backend, (1, 1, 8, 8, 4), [3])
        layer.layer = _C_testing.GatedDelta(float_backend, 3, shape)
        with pytest.raises(ValidationError, match=text):
            layer.whole()
