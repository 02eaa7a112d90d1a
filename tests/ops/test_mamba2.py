"""Backend::mamba2() and short_conv() against float64, cut into pieces in every way, alone and in batches."""

import numpy as np
import pytest
import reference as ref
import reference_mamba2 as oracle
from sequences import check_cut_anywhere, check_no_rows, check_threads
from tolerance import assert_within

from lynx_rt import ValidationError, _C_testing

EPS = 1e-5
UNLIMITED = (0.0, float("inf"))


class Sequences:
    """Rows of some sequences, and the slots of their states."""

    def __init__(self, lengths, columns, seed):
        self.rng = np.random.default_rng(seed)
        self.x = [self.rng.standard_normal((n, columns)).astype(np.float32) for n in lengths]
        self.slots = list(self.rng.permutation(len(lengths) + 2)[: len(lengths)])

    def float32(self, *shape, scale=1.0):
        return (scale * self.rng.standard_normal(shape)).astype(np.float32)

    def feed(self, spans):
        """Rows [begin, end) of each sequence in one call -> their outputs, per sequence."""
        start = np.cumsum([0] + [e - b for _, b, e in spans]).astype(np.int32)
        rows = np.concatenate([self.x[s][b:e] for s, b, e in spans])
        out = self.run(rows, slots=np.array([self.slots[s] for s, _, _ in spans], np.int32), query_start=start)
        return [out[start[i] : start[i + 1]] for i in range(len(spans))]

    def whole(self):
        return self.feed([(s, 0, len(x)) for s, x in enumerate(self.x)])


class Mamba2(Sequences):
    def __init__(self, backend, shape, lengths, bias=True, norm_dtype="float32", limits=UNLIMITED, seed=0):
        heads, p, groups, n, width = self.shape = shape
        self.values, self.channels = heads * p, heads * p + 2 * groups * n
        super().__init__(lengths, self.values + self.channels + heads, seed)
        self.conv, self.bias = (
            self.float32(width, self.channels, scale=0.7),
            self.float32(self.channels) if bias else None,
        )
        self.a_log = self.rng.uniform(-2, 1.5, heads).astype(np.float32)
        self.dt_bias, self.skip = self.float32(heads), self.float32(heads)
        self.norm, self.limits = ref.weight(1 + 0.3 * self.rng.standard_normal(self.values), norm_dtype), limits
        self.layer = _C_testing.Mamba2(backend, len(lengths) + 2, shape)

    def arguments(self):
        return {"conv": self.conv, "conv_bias": self.bias, "rate": -np.exp(self.a_log), "dt_bias": self.dt_bias, "skip": self.skip,
                "norm": self.norm, "eps": EPS, "limits": self.limits}  # fmt: skip

    def run(self, x, **where):
        return self.layer.run(x, **self.arguments(), **where)

    def expected(self, s):
        z, mixed, dt = np.split(ref.value(self.x[s]), [self.values, self.values + self.channels], 1)
        bias = 0.0 if self.bias is None else ref.value(self.bias)
        arrays = (ref.value(x) for x in (self.a_log, self.dt_bias, self.skip, self.norm))
        return oracle.mamba2(z, mixed, dt, self.shape, ref.value(self.conv), bias, *arrays, EPS, self.limits)


class ShortConv(Sequences):
    def __init__(self, backend, channels, width, lengths, bias=True, seed=0):
        super().__init__(lengths, 3 * channels, seed)
        self.conv, self.bias = self.float32(width, channels), self.float32(channels) if bias else None
        self.layer = _C_testing.ShortConv(backend, len(lengths) + 2, channels, width)

    def run(self, x, **where):
        return self.layer.run(x, self.conv, self.bias, **where)

    def expected(self, s):
        bias = 0.0 if self.bias is None else ref.value(self.bias)
        return oracle.short_conv(*np.split(ref.value(self.x[s]), 3, 1), ref.value(self.conv), bias)


# (heads, columns of a head, groups, size of a state, width): one to three heads of a group, sizes off the vector width and around 32
# columns; more channels than a task convolves
CASES = [
    ((1, 1, 1, 1, 2), [1]),
    ((1, 16, 1, 16, 4), [5, 1, 17]),
    ((4, 12, 2, 8, 4), [70, 33]),
    ((6, 33, 2, 10, 3), [3, 40, 1]),
    ((3, 32, 3, 24, 2), [9, 2]),
    ((4, 64, 2, 128, 4), [66]),
    ((2, 40, 1, 96, 16), [21, 1]),
]


@pytest.mark.parametrize("bias, limits", [(True, UNLIMITED), (False, (0.4, 0.9))], ids=["bias", "limits"])
@pytest.mark.parametrize("shape, lengths", CASES, ids=str)
def test_mamba2(float_backend, shape, lengths, bias, limits):
    layer = Mamba2(float_backend, shape, lengths, bias, limits=limits)
    for s, got in enumerate(layer.whole()):
        expected, matrix, past = layer.expected(s)
        assert_within(got, expected, f"sequence {s}")
        state, size = layer.layer.state(layer.slots[s]), matrix[0].size
        assert_within(state[:size].reshape(matrix[0].shape), matrix, f"state of sequence {s}")
        np.testing.assert_array_equal(state[size:].astype(np.float64), past.ravel())


@pytest.mark.parametrize("shape", [(4, 12, 2, 8, 4), (3, 65, 1, 17, 3), (2, 40, 2, 5, 16)], ids=str)
def test_mamba2_cut_anywhere(float_backend, shape):
    check_cut_anywhere(lambda: Mamba2(float_backend, shape, [47, 20, 1]))


def test_mamba2_threads(isa):
    check_threads(isa, lambda backend: Mamba2(backend, (4, 70, 2, 24, 4), [33, 9]))


def test_mamba2_norm_dtypes(float_backend, weight_dtype):
    layer = Mamba2(float_backend, (2, 20, 2, 8, 4), [11], norm_dtype=weight_dtype)
    assert_within(layer.whole()[0], layer.expected(0)[0], weight_dtype)


def test_mamba2_no_rows(float_backend):
    check_no_rows(lambda: Mamba2(float_backend, (2, 4, 1, 4, 4), [3, 2]))


@pytest.mark.parametrize("key, text", [("conv", "conv"), ("conv_bias", "conv_bias"), ("rate", "rate"), ("dt_bias", "dt_bias"),
                                       ("skip", "skip"), ("norm", "norm")])  # fmt: skip
def test_mamba2_wrong_arguments(float_backend, key, text):
    layer = Mamba2(float_backend, (4, 12, 2, 8, 4), [3])
    arguments = layer.arguments()
    arguments[key] = arguments[key][..., 1:].copy()
    with pytest.raises(ValidationError, match=text):
        layer.layer.run(layer.x[0], **arguments, slots=np.zeros(1, np.int32), query_start=np.array([0, 3], np.int32))


def test_mamba2_wrong_shapes(float_backend):
    for shape, text in (((3, 8, 2, 8, 4), "multiple"), ((1, 8, 1, 8, 1), "2 to 16"), ((1, 8, 1, 8, 17), "2 to 16")):
        layer = Mamba2(float_backend, (1, 8, 1, 8, 4), [3])
        layer.layer = _C_testing.Mamba2(float_backend, 3, shape)
        with pytest.raises(ValidationError, match=text):
            layer.whole()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "channels, width, lengths", [(1, 2, [1]), (16, 3, [5, 1, 17]), (33, 4, [70, 2]), (300, 3, [9, 3]), (65, 16, [40])]
)
def test_short_conv(float_backend, channels, width, lengths, bias):
    layer = ShortConv(float_backend, channels, width, lengths, bias)
    for s, got in enumerate(layer.whole()):
        expected, past = layer.expected(s)
        assert_within(got, expected, f"sequence {s}")
        assert_within(layer.layer.state(layer.slots[s]).reshape(past[0].shape), past, f"state of sequence {s}")


@pytest.mark.parametrize("channels, width", [(16, 3), (300, 2), (33, 16)])
def test_short_conv_cut_anywhere(float_backend, channels, width):
    check_cut_anywhere(lambda: ShortConv(float_backend, channels, width, [47, 20, 1]))


def test_short_conv_no_rows(float_backend):
    layer = ShortConv(float_backend, 5, 3, [3, 2])
    assert layer.feed([(0, 0, 0)])[0].shape == (0, 5)
    assert not layer.layer.state(layer.slots[0]).any()


def test_short_conv_wrong_arguments(float_backend):
    layer = ShortConv(float_backend, 8, 3, [3])
    where = {"slots": np.zeros(1, np.int32), "query_start": np.array([0, 3], np.int32)}
    for x, conv, bias, text in (
        (layer.x[0][:, :20].copy(), layer.conv, layer.bias, "x_stride"),
        (layer.x[0], layer.conv[:, 1:].copy(), layer.bias, "conv"),
        (layer.x[0], layer.conv[:1].copy(), layer.bias, "2 to 16"),
        (layer.x[0], layer.conv, layer.bias[1:].copy(), "bias"),
    ):
        with pytest.raises(ValidationError, match=text):
            layer.layer.run(x, conv, bias, **where)
