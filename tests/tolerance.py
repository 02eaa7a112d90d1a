"""Bounds on the error of float32 arithmetic, and the one assertion that uses them. Nothing here is tuned.

U32 = 2^-24 is the unit roundoff of float32: one operation returns x (1 + d) with |d| <= U32. Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1: a sum of k products in any order is within k U32 / (1 - k U32) of sum |products|.
The factor 4 leaves room for kernels that round products before adding and for tails that are padded.
"""

from __future__ import annotations

import numpy as np

U32 = 2.0**-24
TINY = 1e-30  # below this float32 may flush to zero


def dot(k, sum_abs_products):
    """Bound on the error of a sum of k products."""
    return 4 * k * U32 * sum_abs_products + TINY


def norm(k):
    """Relative error of RMSNorm over k: the sum of squares is off by k U32 at most, which the square root halves; then mean, eps,
    square root, reciprocal and two products."""
    return (k / 2 + 8) * U32


# exp in float32: argument reduction and a polynomial within 2^-22 (kernels_inl.h states it; test_elementwise.py checks it through silu),
# then sum, quotient and product.
SILU = 2.0**-22 + 4 * U32
SILU_SLOPE = 1.1  # max |silu'| = 1.0998 (at x = 2.3994)
SILU_TINY = 1e-34  # the exponential is clamped at e^88: |x| / e^88 where the true value is smaller still


def softmax(n, scores):
    """Relative error of a probability: of the exponent's argument (one subtraction, one product), the exponential, the sum and its
    reciprocal. Spans of 512 keys (csrc/backend/cpu/attention.cc) are merged one after the other: each merge is one more exponential and
    three roundings, and the arguments of all merges together are at most the spread."""
    spread, merges = float(np.max(scores) - np.min(scores)), (n - 1) // 512
    arguments = 4 * U32 * (spread + np.abs(scores).max())
    return (1 + (merges > 0)) * arguments + (1 + merges) * 2.0**-22 + (n + 4 + 3 * merges) * U32


def assert_within(got, expected, what=""):
    """`expected` is (value, error) of the oracle. Reports the worst element, both values and the share of the bound used."""
    value, error = expected
    assert got.shape == value.shape, f"{what}: shape {got.shape}, expected {value.shape}"
    if got.size == 0:
        return
    assert np.isfinite(got).all(), f"{what}: not finite at {tuple(np.argwhere(~np.isfinite(got))[0])}"
    used = np.abs(got - value) / (error + TINY)
    worst = np.unravel_index(np.argmax(used), used.shape)
    where = f"{what}: at {tuple(map(int, worst))}"
    assert used[worst] <= 1, (
        f"{where} got {got[worst]:.9g}, expected {value[worst]:.9g}: {used[worst]:.3g} of the bound"
    )
