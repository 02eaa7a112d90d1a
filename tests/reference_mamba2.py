"""Mamba2 and the short convolution in float64, row by row, with bounds on the error of float32: backend.h, mamba2() and short_conv().

The scan is arXiv 2405.21060 section 7: S_t = decay S_(t-1) + B (dt x)^T, y_t = S_t^T C + D x. Decays are below 1, so an error of S does not
grow: the bound of a row is decay times that of the row before, plus what the row's own roundings add.
"""

from __future__ import annotations

import numpy as np
import tolerance as tol
from reference_gated_delta import convolve, gated_norm, silu

U = tol.U32


def mamba2(z, mixed, dt, shape, conv, conv_bias, a_log, dt_bias, skip, norm, eps, limits):
    """z [T, A P], mixed [T, C] of x, B and C, dt [T, A], shape (A, P, groups, N, W), as float64.
    Returns (rows [T, A P], error), (S [A, N, P] after the last row, error), and the last W - 1 inputs of the convolution."""
    heads, p, groups, n, width = shape
    rows, values = len(z), heads * p
    inputs = np.concatenate([np.zeros((width - 1, mixed.shape[1])), mixed])
    parts = [np.split(part, [values, values + groups * n], 1) for part in convolve(inputs, conv, conv_bias)]
    x, x_error = (part[0].reshape(rows, heads, p) for part in parts)
    (b, b_error), (c, c_error) = [
        [np.repeat(part[i].reshape(rows, groups, n), heads // groups, 1) for part in parts] for i in (1, 2)
    ]
    raw = dt + dt_bias
    soft = np.logaddexp(0, raw)
    soft_error = 2 * U * (np.abs(dt) + np.abs(dt_bias)) + 8 * U * soft
    low, high = (float(np.float32(limit)) for limit in limits)
    dt = np.clip(soft, low, high)  # clamping does not increase errors
    rate = np.exp(a_log)
    decay = np.exp(-rate * dt)
    decay_error = decay * np.expm1(rate * soft_error + 8 * U * rate * dt) + 4 * U * decay

    s, s_error = np.zeros((heads, n, p)), np.zeros((heads, n, p))
    out, out_error = np.zeros((rows, heads, p)), np.zeros((rows, heads, p))
    for t in range(rows):
        by, by_error = decay[t][:, None, None], decay_error[t][:, None, None]
        u = dt[t][:, None] * x[t]
        u_error = dt[t][:, None] * x_error[t] + soft_error[t][:, None] * np.abs(x[t]) + U * np.abs(u)
        added = b[t][:, :, None] * u[:, None, :]
        own = by_error * np.abs(s) + np.abs(b[t])[:, :, None] * u_error[:, None, :]
        own += b_error[t][:, :, None] * np.abs(u)[:, None, :] + 3 * U * (by * np.abs(s) + np.abs(added))
        s_error = by * s_error + 1.01 * own  # 1.01: products of errors
        s = by * s + added
        out[t] = np.einsum("hnp,hn->hp", s, c[t])
        out_error[t] = 1.01 * (
            tol.dot(n, np.einsum("hnp,hn->hp", np.abs(s), np.abs(c[t])))
            + np.einsum("hnp,hn->hp", s_error, np.abs(c[t]))
            + np.einsum("hnp,hn->hp", np.abs(s), c_error[t])
        )
    through = skip[:, None] * x
    y = out + through
    y_error = out_error + np.abs(skip)[:, None] * x_error + 2 * U * (np.abs(out) + np.abs(through))
    y, y_error = y.reshape(rows, values), y_error.reshape(rows, values)
    gate = silu(z)
    g = y * gate
    g_error = y_error * np.abs(gate) + (tol.SILU + 2 * U) * np.abs(g) + tol.SILU_TINY
    by_group = (rows, groups, values // groups)
    result, error = gated_norm(g.reshape(by_group), g_error.reshape(by_group), norm.reshape(by_group[1:]), eps)
    return (result.reshape(rows, -1), error.reshape(rows, -1)), (s, s_error), inputs[len(inputs) - (width - 1) :]


def short_conv(b, c, x, conv, bias):
    """b, c, x [T, H], conv [W, H], bias [H], as float64. Returns (rows [T, H], error) and the last W - 1 inputs with their error."""
    rows, width = len(x), len(conv)
    inputs = np.concatenate([np.zeros((width - 1, x.shape[1])), b * x])
    total = bias + sum(inputs[j : j + rows] * conv[j] for j in range(width))
    sums = np.abs(bias) + sum(np.abs(inputs[j : j + rows] * conv[j]) for j in range(width))
    past = inputs[len(inputs) - (width - 1) :]
    return (c * total, np.abs(c) * tol.dot(width, sums) + U * np.abs(c * total)), (past, U * np.abs(past))
