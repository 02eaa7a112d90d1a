"""Float64 oracles of the backend's ops, written from the formulas and not from the C++ code.

Each returns (value, error): `error` bounds, element by element, how far a correct float32 implementation may be from `value`;
tolerance.py has its derivation. Where a contract in csrc/backend/backend.h says that an op rounds to a 16-bit dtype, the oracle rounds
there too. If a value is so near to the middle of two 16-bit numbers that float32 cannot tell its side, its error includes the step
between them.

Notation: T rows, K inputs, N outputs, H hidden, I expert width, E experts, A query and G key/value heads of size D.
"""

from __future__ import annotations

import math

import numpy as np
import tolerance as tol

F64 = np.float64


def to_bf16_bits(x):
    """Rounds float32 to its upper half, to nearest even (IEEE 754 rule on the lower half)."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def weight(x, dtype):
    """Returns an array in the form in which the bindings take weights of `dtype`: bfloat16 as its bits."""
    if dtype == "bfloat16":
        return to_bf16_bits(x)
    return np.ascontiguousarray(x, {"float32": np.float32, "float16": np.float16}[dtype])


def value(w):
    """Returns an array of weight() as float64."""
    return (from_bf16_bits(w) if w.dtype == np.uint16 else w).astype(F64)


def rounded(x, dtype, error):
    """Returns x in `dtype` as float64, and its error if x itself may be off by `error`."""
    if dtype == "float32":
        return x, error + np.abs(x) * tol.U32

    def to(v):
        v = np.asarray(v, np.float32)
        return value(weight(v, dtype))

    r = to(x)
    return r, np.maximum(np.abs(to(x + error) - r), np.abs(to(x - error) - r))


def entering(x, dtype):
    """Returns a float32 row as it enters a product: rounded to the compute dtype."""
    return value(weight(x, dtype))


def linear(x, w, dtype, bias=None, add_to=None, scale=1.0):
    """scale * (dot(round(x), w) + bias) (+ what was there): backend.h, linear()."""
    x, w = entering(x, dtype), value(w)
    y, error = x @ w.T, tol.dot(x.shape[1], np.abs(x) @ np.abs(w).T)
    if bias is not None:
        y = y + value(bias)
        error = error + tol.U32 * (np.abs(y) + error)
    scale = float(np.float32(scale))
    y, error = scale * y, abs(scale) * (error + (scale != 1) * tol.U32 * np.abs(y))
    if add_to is not None:
        y = y + add_to
        error = error + tol.U32 * (np.abs(y) + error)
    return y, error


def router(x, w, bias=None, scale=1.0):
    """scale * (product of unrounded rows, whatever the compute dtype) + bias: backend.h, router()."""
    y, error = linear(x, w, "float32", scale=scale)
    if bias is not None:
        y = y + value(bias)
        error = error + tol.U32 * (np.abs(y) + error)
    return y, error


def layernorm(x, w, bias, eps):
    """(x - mean) / sqrt(variance + eps) * w + b: arXiv 1607.06450 eq. 4. The mean has a dot product's error, which shifts every
    deviation; the variance is a sum of squares of these deviations."""
    n = x.shape[-1]
    x = x.astype(F64)
    mean = x.mean(-1, keepdims=True)
    d_mean = tol.dot(n, np.abs(x).mean(-1, keepdims=True))
    d = x - mean
    dd = d_mean + tol.U32 * np.abs(d)
    s2 = (d**2).mean(-1, keepdims=True) + float(np.float32(eps))
    d_s2 = tol.dot(n, s2) + (2 * np.abs(d) * dd + dd**2).mean(-1, keepdims=True)
    y = d / np.sqrt(s2) * value(w)
    error = dd / np.sqrt(s2) * np.abs(value(w)) + np.abs(y) * (d_s2 / s2 + 6 * tol.U32)
    out = y + value(bias)
    return out, error + tol.U32 * (np.abs(out) + error)


def rmsnorm(x, w, eps):
    """x / sqrt(mean(x^2) + eps) * w: arXiv 1910.07467 eq. 4 with the usual eps."""
    x = x.astype(F64)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + float(np.float32(eps))) * value(w)
    return y, tol.norm(x.shape[-1]) * np.abs(y)


def silu(x):
    """x * sigmoid(x): arXiv 1606.08415 section 2."""
    return x / (1 + np.exp(-np.clip(x, -700, 700)))


def add_rmsnorm(y, w, eps, x=None, scale=None):
    """(x + rmsnorm(y)) * scale: backend.h, add_rmsnorm(); x None = 0."""
    out, error = rmsnorm(y, w, eps)
    if x is not None:
        out = out + x
        error = error + tol.U32 * (np.abs(out) + error)
    if scale is not None:
        out, error = out * value(scale), error * np.abs(value(scale))
        error = error + tol.U32 * np.abs(out)
    return out, error


def logits(x, w, dtype, scale=1.0, soft_cap=0.0):
    """soft_cap * tanh(linear(x) / soft_cap). Below 0.16 the kernel takes a Taylor series, whose relative error is some roundings. Above
    it computes 1 - 2 / (e^2r + 1), where the exponential's own error and that of its argument are halved at least."""
    y, error = linear(x, w, dtype, scale=scale)
    if soft_cap == 0:
        return y, error
    cap = float(np.float32(soft_cap))
    ratio, out = y / cap, cap * np.tanh(y / cap)
    far = cap * (2.0**-23 + 6 * tol.U32)
    return out, error + np.where(np.abs(ratio) < 0.15, 10 * tol.U32 * np.abs(out), far)  # the slope is 1 at most


def gelu_tanh(x):
    """x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x / (1 + e^-2u), and its relative error in float32: 2u has 7 roundings, of
    which the exponential makes 2u times as much; the exponential is within 2^-22; then sum and quotient."""
    twice = 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    y = x / (1 + np.exp(np.clip(-twice, -700, 700)))
    return y, np.abs(y) * (2.0**-22 + (4 + 7 * np.abs(twice)) * tol.U32) + tol.SILU_TINY


GELU_SLOPE = 1.13  # max |gelu'| = 1.129 (at x = 1.41), of both forms


def gelu(x):
    """x / 2 * (1 + erf(z)), z = x / sqrt(2), and its error: the kernel computes erfc(|z|) within 2^-20 beside the roundings of z^2 in an
    exponent, and adds it to 0 or takes it from 2; then two products."""
    z = np.abs(x) / np.sqrt(2)
    tail = np.vectorize(math.erfc, otypes=[F64])(z)
    y = x / 2 * np.where(x < 0, tail, 2 - tail)
    tail_error = tail * (2.0**-20 + 5 * z**2 * tol.U32)
    return y, np.abs(x) / 2 * tail_error + 3 * tol.U32 * np.abs(y) + tol.SILU_TINY


def mlp(x, gate, up, down, dtype, biases=(None, None, None), clamped=None, input_scale=None, activation="silu"):
    """down(activation(gate(x), up(x))): SwiGLU, arXiv 2002.05202 eq. 6, or with clamped = (alpha, limit) gpt-oss's; "gelu_tanh": GEGLU, eq.
    5, or without up gelu_tanh(gate(x)); "gelu", without up: gelu(gate(x)); "relu2", without up: max(gate(x), 0)^2; rows and hidden values enter products rounded. input_scale [T, 1] scales the products of the rows, before the biases."""

    def product(w, bias):
        y, error = linear(x, w, dtype)
        if input_scale is not None:
            y, error = y * input_scale, (error + tol.U32 * np.abs(y)) * input_scale
        if bias is not None:
            y = y + value(bias)
            error = error + tol.U32 * (np.abs(y) + error)
        return y, error

    g, g_error = product(gate, biases[0])
    u, u_error = (g, g_error) if up is None else product(up, biases[1])
    if activation == "relu2":  # max(g, 0)^2, of one product
        s, s_error = np.maximum(g, 0), g_error
        u, u_error = s, s_error
    elif activation in ("gelu_tanh", "gelu"):
        s, s_error = gelu_tanh(g) if activation == "gelu_tanh" else gelu(g)
        s_error = s_error + GELU_SLOPE * g_error
        if up is None:
            u, u_error = np.ones_like(g), np.zeros_like(g)
    elif clamped is None:
        s = silu(g)
        s_error = tol.SILU_SLOPE * g_error + tol.SILU * np.abs(s) + tol.SILU_TINY
    else:
        alpha, limit = (float(np.float32(v)) for v in clamped)
        g = np.minimum(g, limit)  # clamping does not increase errors
        s = silu(alpha * g) / alpha
        s_error = tol.SILU_SLOPE * (g_error + tol.U32 * np.abs(g)) + tol.SILU * np.abs(s) + tol.SILU_TINY
        u = np.clip(u, -limit, limit) + 1
        u_error = u_error + tol.U32 * (np.abs(u) + u_error)
    h = s * u
    h_error = s_error * (np.abs(u) + u_error) + np.abs(s) * u_error + tol.U32 * np.abs(h)
    h, h_error = rounded(h, dtype, h_error)
    w = value(down)
    y, error = h @ w.T, tol.dot(h.shape[1], (np.abs(h) + h_error) @ np.abs(w).T) + h_error @ np.abs(w).T
    if biases[2] is not None:
        y = y + value(biases[2])
        error = error + tol.U32 * (np.abs(y) + error)
    return y, error


def expert_ffn(
    x,
    gates,
    ups,
    downs,
    ids,
    weights,
    dtype,
    biases=None,
    clamped=None,
    scale_input=False,
    activation="silu",
    expert_scale=None,
):
    """sum_j weights[t, j] * expert_scale[e] * expert e = ids[t, j] of row t, over the j whose id is not -1."""
    y, error = np.zeros(x.shape), np.zeros(x.shape)
    total = np.zeros(x.shape)
    for e in range(len(gates)):
        rows, slots = np.nonzero(ids == e)
        scale = weights[rows, slots].astype(F64)[:, None]
        of_expert = (None, None, None) if biases is None else tuple(b[e] for b in biases)
        part, part_error = mlp(
            x[rows],
            gates[e],
            ups[e] if ups else None,
            downs[e],
            dtype,
            of_expert,
            clamped,
            scale if scale_input else None,
            activation,
        )
        if scale_input:
            scale = np.ones_like(scale)
        if expert_scale is not None:
            scale = scale * float(expert_scale[e])
            part_error = part_error + tol.U32 * np.abs(part)  # the product of the two factors is rounded
        np.add.at(y, rows, scale * part)
        np.add.at(error, rows, np.abs(scale) * part_error)
        np.add.at(total, rows, np.abs(scale * part))
    return y, error + tol.dot(ids.shape[1] + 1, total)


def rope_tables(positions, head_dim, theta=10000.0):
    """cos and sin [positions, D / 2] as float32: arXiv 2104.09864 eq. 34 with the frequencies of section 3.2.2."""
    angle = np.arange(positions)[:, None] * theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rope(x, cos, sin, error):
    """Rotates the pairs (x[i], x[i + D/2]), the half-split layout of transformers (modeling_qwen3.py, rotate_half)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    ea, eb = error[..., :half], error[..., half:]
    c, s = np.abs(cos), np.abs(sin)
    y = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    size = np.concatenate([np.abs(a) * c + np.abs(b) * s, np.abs(b) * c + np.abs(a) * s], -1)
    return y, 3 * tol.U32 * size + np.concatenate([ea * c + eb * s, eb * c + ea * s], -1)


def head_rows(x, norm, eps, cos, sin, dtype):
    """Returns q or k of every row [T, heads, D] after norm and rotation, rounded as it enters the product or the cache."""
    x = x.astype(F64)
    y, error = (x, np.zeros_like(x)) if norm is None else rmsnorm(x, norm, eps)
    y, error = rope(y, cos[:, None].astype(F64), sin[:, None].astype(F64), error)
    return rounded(y, dtype, error)


def attend_row(q, k, v, dq, dk):
    """softmax(q . k / sqrt(D)) . v of one head: arXiv 1706.03762 eq. 1. q [D], k and v [n, D] -> [D]."""
    n, d = k.shape
    scale = 1 / np.sqrt(d)
    scores = k @ q * scale
    off = (dk @ np.abs(q) + (np.abs(k) + dk) @ dq + tol.dot(d, np.abs(k) @ np.abs(q))) * scale
    p = np.exp(scores - scores.max())
    p /= p.sum()
    relative = np.expm1(2 * off.max() + tol.softmax(n, scores))
    y, size = p @ v, p @ np.abs(v)
    return y, relative * size + tol.dot(n, size)


def attention(sequences, num_heads, num_kv_heads, q_norm, k_norm, eps, cos, sin, dtype):
    """Computes every position of every sequence, from its whole qkv [n, (A + 2 G) D] -> list of ([n, A * D], error)."""
    out = []
    for qkv in sequences:
        n = len(qkv)
        heads = qkv.reshape(n, num_heads + 2 * num_kv_heads, -1)
        q, dq = head_rows(heads[:, :num_heads], q_norm, eps, cos[:n], sin[:n], dtype)
        k, dk = head_rows(heads[:, num_heads:-num_kv_heads], k_norm, eps, cos[:n], sin[:n], dtype)
        v = entering(heads[:, -num_kv_heads:], dtype)
        y, error = np.empty(q.shape), np.empty(q.shape)
        for t in range(n):
            for a in range(num_heads):
                g = a // (num_heads // num_kv_heads)
                to = slice(0, t + 1)
                y[t, a], error[t, a] = attend_row(q[t, a], k[to, g], v[to, g], dq[t, a], dk[to, g])
        out.append((y.reshape(n, -1), error.reshape(n, -1)))
    return out
