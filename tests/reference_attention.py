"""Float64 oracles of attention in all its variants: qkv_post(), mla_post() and attention(). reference.py has the other ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import reference as ref
import tolerance as tol

F64 = np.float64


@dataclass
class Variant:
    """The arguments of the bindings' attend(), in its forms."""

    norm: str = "none"
    q_norm: Any = None
    k_norm: Any = None
    eps: float = 1e-6
    interleaved: bool = False
    clip: float = 0.0
    temperature: tuple[float, float] = (0.0, 0.0)
    window: int = 0
    chunk: int = 0
    sinks: Any = None
    scale: float | None = None
    v_norm: bool = False
    v_from_k: bool = False
    causal: bool = True

    def first_key(self, position):
        """Returns the first key that a query at `position` sees."""
        by_window = position - self.window + 1 if self.window else 0
        by_chunk = position // self.chunk * self.chunk if self.chunk else 0
        return max(0, by_window, by_chunk)


def norm(x, error, w, eps):
    """RMSNorm of x, which may be off by `error`; w None = no weights. d(x / s) <= dx / s + |x / s| mean(|x| dx) / s^2."""
    s2 = (x**2).mean(-1, keepdims=True) + float(np.float32(eps))
    s = np.sqrt(s2)
    w = np.ones(x.shape[-1]) if w is None else ref.value(w)
    y = x / s * w
    from_input = error / s * np.abs(w) + np.abs(y) * (np.abs(x) * error).mean(-1, keepdims=True) / s2
    return y, 1.01 * from_input + tol.norm(x.shape[-1]) * np.abs(y)


def rotate(x, error, cos, sin, interleaved):
    """Rotates the first 2 * cos.shape[-1] columns in pairs: (2 i, 2 i + 1) if interleaved, else (i, i + half)."""
    dim = 2 * cos.shape[-1]
    order = np.arange(dim).reshape(-1, 2).T.ravel() if interleaved else np.arange(dim)  # to the half-split layout
    y, e = x.copy(), error.copy()
    turned, turned_error = ref.rope(x[..., order], cos.astype(F64), sin.astype(F64), error[..., order])
    y[..., order], e[..., order] = turned, turned_error
    return y, e


def head_rows(x, w, v: Variant, cos, sin, dtype, is_q):
    """Returns q or k of every row [T, heads, D] as it enters the product or the cache, and its error."""
    y, error = x.astype(F64), np.zeros(x.shape)
    if v.norm == "head":
        y, error = norm(y, error, w, v.eps)
    if v.norm == "width":
        flat, flat_error = norm(y.reshape(len(y), -1), error.reshape(len(y), -1), w, v.eps)
        y, error = flat.reshape(x.shape), flat_error.reshape(x.shape)
    if v.clip:
        y = np.clip(y, -float(np.float32(v.clip)), float(np.float32(v.clip)))
    if cos.shape[-1]:
        y, error = rotate(y, error, cos[:, None], sin[:, None], v.interleaved)
    if v.norm in ("head_after_rope", "unit_after_rope"):
        y, error = norm(y, error, w, v.eps)
    if is_q and v.temperature[0]:
        floor, scale = v.temperature
        by = 1 + scale * np.log1p(np.floor((np.arange(len(y)) + 1) / floor))[:, None, None]
        y, error = y * by, error * by + 8 * tol.U32 * np.abs(y * by)
    return ref.rounded(y, dtype, error)


def attend_row(q, k, values, dq, dk, dv, scale, sink=None, rounding=0.0):
    """softmax(scale * q . k), with the sink as one more logit without a value, times V; -> [Dv], error. rounding: relative, of a weight
    before it meets V."""
    n, d = k.shape
    scores = k @ q * scale
    off = (dk @ np.abs(q) + (np.abs(k) + dk) @ dq + tol.dot(d, np.abs(k) @ np.abs(q))) * scale + tol.U32 * np.abs(
        scores
    )
    every = scores if sink is None else np.append(scores, sink)
    p = np.exp(every - every.max())
    p = (p / p.sum())[:n]
    relative = np.expm1(2 * off.max() + tol.softmax(n + 1, every) + (0 if sink is None else 4 * tol.U32 * abs(sink)))
    y, size = p @ values, p @ np.abs(values)
    return y, (relative + (1 + relative) * rounding) * size + tol.dot(n, size) + p @ dv


def normed_values(values, eps, dtype):
    y, error = norm(values, np.zeros_like(values), None, eps)
    return ref.rounded(y, dtype, error)


def attention(sequences, num_heads, num_kv_heads, v: Variant, cos, sin, dtype):
    """Computes every position of every sequence, from its whole qkv [n, (A + 2 G) D] -> list of ([n, A * D], error)."""
    out = []
    for qkv in sequences:
        n = len(qkv)
        heads = qkv.reshape(n, num_heads + 2 * num_kv_heads, -1)
        q, dq = head_rows(heads[:, :num_heads], v.q_norm, v, cos[:n], sin[:n], dtype, True)
        k, dk = head_rows(heads[:, num_heads:-num_kv_heads], v.k_norm, v, cos[:n], sin[:n], dtype, False)
        values = heads[:, num_heads:-num_kv_heads] if v.v_from_k else heads[:, -num_kv_heads:]
        values = values.astype(F64)
        if v.clip:
            values = np.clip(values, -v.clip, v.clip)
        none = np.zeros_like(values)
        values, dv = normed_values(values, v.eps, dtype) if v.v_norm else (ref.entering(values, dtype), none)
        scale = 1 / np.sqrt(heads.shape[2]) if v.scale is None else float(np.float32(v.scale))
        # Without a causal mask weights may be rounded to bf16: backend.h, attention().
        rounding = 2.0**-8 if dtype == "bfloat16" and not v.causal else 0.0  # 8 bits of significand
        y, error = np.empty(q.shape), np.empty(q.shape)
        for t in range(n):
            seen = slice(v.first_key(t), t + 1 if v.causal else n)
            for a in range(num_heads):
                g = a // (num_heads // num_kv_heads)
                sink = None if v.sinks is None else float(ref.value(v.sinks)[a])
                y[t, a], error[t, a] = attend_row(
                    q[t, a], k[seen, g], values[seen, g], dq[t, a], dk[seen, g], dv[seen, g], scale, sink, rounding
                )
        out.append((y.reshape(n, -1), error.reshape(n, -1)))
    return out


def latent_attention(q, latent_q, kv, num_heads, kv_norm, eps, cos, sin, interleaved, scale, dtype):
    """One sequence of multi-head latent attention (arXiv 2405.04434 section 2.1), from q [n, A (nope + R)], the heads' queries in the
    latent space latent_q [n, A, L + R] (the last R of each to be overwritten), kv [n, L + R] -> ([n, A * L], error)."""
    n, width, rotated = len(kv), kv.shape[1], 2 * cos.shape[1]
    latent = width - rotated
    c, dc = norm(kv[:, :latent].astype(F64), np.zeros((n, latent)), kv_norm, eps)
    r, dr = rotate(kv[:, latent:].astype(F64), np.zeros((n, rotated)), cos[:n], sin[:n], interleaved)
    k, dk = ref.rounded(np.concatenate([c, r], 1), dtype, np.concatenate([dc, dr], 1))
    heads = q.reshape(n, num_heads, -1)[:, :, -rotated:].astype(F64)
    r, dr = rotate(heads, np.zeros(heads.shape), cos[:n, None], sin[:n, None], interleaved)
    x = latent_q.reshape(n, num_heads, width)[:, :, :latent].astype(F64)
    x, dx = ref.rounded(np.concatenate([x, r], 2), dtype, np.concatenate([np.zeros(x.shape), dr], 2))
    y, error = np.empty((n, num_heads, latent)), np.empty((n, num_heads, latent))
    for t in range(n):
        seen = slice(0, t + 1)
        values, dv = k[seen, :latent], dk[seen, :latent]
        for a in range(num_heads):
            y[t, a], error[t, a] = attend_row(x[t, a], k[seen], values, dx[t, a], dk[seen], dv, scale)
    return y.reshape(n, -1), error.reshape(n, -1)
