"""Gated DeltaNet in float64, row by row, with bounds on the error of float32: backend.h, gated_delta_rule().

The rule is arXiv 2412.06464 eq. 10: S_t = decay (I - beta k k^T) S_(t-1) + beta k v^T. The matrix in front of S has no singular value above
1, since |k| <= 1 and 0 < beta < 1, so an error of a column of S does not grow in the 2-norm: the bound of a row is decay times the bound
of the row before, plus what the row's own roundings add. With a decay for each row of S (Kimi delta attention, arXiv 2510.26692 eq. 1:
S_t = (I - beta k k^T) diag(decay) S_(t-1) + beta k v^T) it is the largest decay times that bound.
"""

from __future__ import annotations

import numpy as np
import tolerance as tol

U = tol.U32


def silu(x):
    return x / (1 + np.exp(-np.clip(x, -700, 700)))


def unit(x, error, scale):
    """scale * x / sqrt(sum of squares + 1e-6), and the 2-norm of its error."""
    length = np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)
    y = scale * x / length
    relative = 2 * np.linalg.norm(error, axis=-1, keepdims=True) / length  # of the numerator and of the length
    return y, relative[..., 0] * scale + (tol.norm(x.shape[-1]) + 4 * U) * np.linalg.norm(y, axis=-1)


def gates(b, a, a_log, dt_bias):
    """beta and decay with their errors. exp, log1p and the sum in its argument are within a few roundings each."""
    beta = 1 / (1 + np.exp(-b))
    x = a + dt_bias
    soft, soft_error = np.logaddexp(0, x), 2 * U * (np.abs(a) + np.abs(dt_bias)) + 8 * U * np.logaddexp(0, x)
    rate = np.exp(a_log)
    decay = np.exp(-rate * soft)
    argument_error = rate * soft_error + 8 * U * rate * soft
    return beta, 8 * U * beta, decay, decay * np.expm1(argument_error) + 4 * U * decay


def convolve(inputs, conv, bias=0.0):
    """silu(bias + sum_j conv[j] * inputs[t + j]) for inputs [W - 1 + T, C], conv [W, C], with its error."""
    width, rows = len(conv), len(inputs) - len(conv) + 1
    total = bias + sum(inputs[j : j + rows] * conv[j] for j in range(width))
    sums = np.abs(bias) + sum(np.abs(inputs[j : j + rows] * conv[j]) for j in range(width))
    mixed = silu(total)
    return mixed, tol.SILU_SLOPE * tol.dot(width, sums) + tol.SILU * np.abs(mixed) + tol.SILU_TINY


def gated_norm(out, out_error, norm, eps):
    """out / rms(out) * norm over the last axis, and its error."""
    square = (out * out).mean(-1, keepdims=True) + float(np.float32(eps))
    y = out / np.sqrt(square) * norm
    # The derivative of x / rms(x), with the second order below the same again where errors are small against the rows.
    slope = (np.abs(out) * out_error).mean(-1, keepdims=True) / square
    error = 2 * (out_error / np.sqrt(square) + np.abs(out) / np.sqrt(square) * slope) * np.abs(norm)
    return y, error + tol.norm(out.shape[-1]) * np.abs(y)


def gated_delta(q, k, v, z, b, a, conv, a_log, dt_bias, norm, eps, tiled=False, sigmoid_gate=False):
    """q, k [T, kh, dk], v, z [T, vh, dv], b, a [T, vh], conv [W, C], a_log, dt_bias [vh], norm [dv], as float64. With a decay for each
    row of S: a [T, vh, dk], dt_bias [vh, dk]. tiled: value head h belongs to key head h % kh, else to h // (vh / kh).
    Returns (rows [T, vh * dv], error), (S [vh, dk, dv] after the last row, error), and the last W - 1 inputs of the convolution."""
    (rows, key_heads, dk), (_, value_heads, dv), width = q.shape, v.shape, len(conv)
    mixed = np.concatenate([x.reshape(rows, -1) for x in (q, k, v)], 1)
    inputs = np.concatenate([np.zeros((width - 1, mixed.shape[1])), mixed])
    mixed, error = convolve(inputs, conv)
    split = [key_heads * dk, 2 * key_heads * dk]
    (q, k, v), (dq, dk_error, dv_error) = np.split(mixed, split, 1), np.split(error, split, 1)

    def heads(x):
        return x.reshape(rows, key_heads, dk)

    group = value_heads // key_heads
    (q, dq), (k, dk_error) = unit(heads(q), heads(dq), dk**-0.5), unit(heads(k), heads(dk_error), 1.0)
    q, k, dq, dk_error = (
        np.concatenate([x] * group, 1) if tiled else np.repeat(x, group, 1) for x in (q, k, dq, dk_error)
    )
    v, dv_error = v.reshape(rows, value_heads, dv), dv_error.reshape(rows, value_heads, dv)
    by_channel = a.ndim == 3
    if by_channel:
        beta, beta_error, _, _ = gates(b, 0, a_log, dt_bias[:, 0])
        _, _, decay, decay_error = gates(0, a, a_log[:, None], dt_bias)
    else:
        beta, beta_error, decay, decay_error = gates(b, a, a_log, dt_bias)
        decay, decay_error = decay[..., None], decay_error[..., None]
    beta, beta_error = beta[..., None], beta_error[..., None]
    decay, decay_error = decay[..., None], decay_error[..., None]  # [T, vh, dk or 1, 1]

    s, s_error = np.zeros((value_heads, dk, dv)), np.zeros((value_heads, dv))  # error: 2-norm of each column
    out, out_error = np.zeros((rows, value_heads, dv)), np.zeros((rows, value_heads, dv))
    for t in range(rows):
        decayed = decay[t] * s
        length = np.linalg.norm(decayed, axis=1)
        read = np.einsum("hkv,hk->hv", decayed, k[t])
        read_error = tol.dot(dk, np.einsum("hkv,hk->hv", np.abs(decayed), np.abs(k[t]))) + dk_error[t][:, None] * length
        if by_channel:
            of_decay = np.einsum("hkv,hk->hv", (decay_error[t] + 2 * U * decay[t]) * np.abs(s), np.abs(k[t]))
        else:
            of_decay = (decay_error[t, :, 0] / np.maximum(decay[t, :, 0], tol.TINY) + 2 * U) * np.abs(read)
        left = v[t] - read
        left_error = dv_error[t] + read_error + of_decay + U * np.abs(left)
        u = beta[t] * left
        u_error = beta[t] * left_error + beta_error[t] * np.abs(left) + U * np.abs(u)
        own = (
            u_error
            + dk_error[t][:, None] * np.abs(u)
            + 3 * U * (length + np.abs(u))
            + np.linalg.norm(decay_error[t] * s, axis=1)
        )
        s = decayed + k[t][:, :, None] * u[:, None, :]
        s_error = decay[t].max(1) * s_error + 1.01 * own  # 1.01: products of errors
        out[t] = np.einsum("hkv,hk->hv", s, q[t])
        sums = tol.dot(dk, np.einsum("hkv,hk->hv", np.abs(s), np.abs(q[t])))
        out_error[t] = 1.01 * (
            sums + dq[t][:, None] * np.linalg.norm(s, axis=1) + s_error * np.linalg.norm(q[t], axis=1)[:, None]
        )

    y, y_error = gated_norm(out, out_error, norm, eps)
    gate = 1 / (1 + np.exp(-z)) if sigmoid_gate else silu(z)
    result = y * gate
    error = (y_error * np.abs(gate) + (tol.SILU + 4 * U) * np.abs(result)).reshape(rows, -1)
    state_error = np.broadcast_to(s_error[:, None, :], s.shape)
    return (result.reshape(rows, -1), error), (s, state_error), inputs[len(inputs) - (width - 1) :]
