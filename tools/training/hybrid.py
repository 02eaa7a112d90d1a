"""A compact Qwen3-Next for training on a CPU: Gated DeltaNet layers between layers of gated attention, experts with a shared one.

The arithmetic is that of transformers' Qwen3Next. The delta rule is computed in chunks of 64 tokens (Yang et al., "Gated Delta
Networks", 2024, equations 8 to 10). Everything else is model.py's.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from model import BF, AttnFn, Config, HeadLoss, _rope, _swiglu, add_experts, feed_forward, norm, random_parameter

CHUNK = 64


@dataclass
class HybridConfig(Config):
    interval: int = 4  # every interval-th layer attends; the others are Gated DeltaNet
    key_heads: int = 2
    value_heads: int = 4
    key_dim: int = 64
    value_dim: int = 64
    conv: int = 4
    shared: int = 48  # width of the shared expert
    rotary: float = 0.25  # share of a head that rotates

    def attends(self, layer):
        return (layer + 1) % self.interval == 0


def delta_rule(q, k, v, g, beta):
    """q, k [N,S,K] (normalised, q scaled), v [N,S,V], g, beta [N,S] -> [N,S,V], all float32; N = sequences x heads."""
    N, S, K = q.shape
    n = S // CHUNK
    q, k, v = (x.reshape(N * n, CHUNK, -1) for x in (q, k, v))
    G = g.reshape(N * n, CHUNK).cumsum(-1)
    beta = beta.reshape(N * n, CHUNK, 1)
    row = torch.arange(CHUNK)
    keep = row[:, None] >= row[None, :]
    decay = torch.exp((G[:, :, None] - G[:, None, :]).masked_fill(~keep, float("-inf")))
    kb = k * beta
    A = torch.bmm(kb, k.transpose(1, 2)) * decay * (row[:, None] > row[None, :])
    T = torch.linalg.solve_triangular(
        A + torch.eye(CHUNK), torch.cat([v * beta, kb * torch.exp(G)[..., None]], -1), upper=False, unitriangular=True
    )
    U, W = T.split([v.shape[-1], K], -1)
    inner = torch.bmm(q, k.transpose(1, 2)) * decay
    qg = q * torch.exp(G)[..., None]
    last = G[:, -1]
    kg = k * torch.exp(last[:, None] - G)[..., None]
    U, W, inner, qg, kg = (x.view(N, n, *x.shape[1:]) for x in (U, W, inner, qg, kg))
    e = torch.exp(last).view(N, n, 1, 1)
    state, out = torch.zeros(N, K, v.shape[-1]), []
    for c in range(n):
        new = U[:, c] - torch.bmm(W[:, c], state)
        out.append(torch.bmm(qg[:, c], state) + torch.bmm(inner[:, c], new))
        state = state * e[:, c] + torch.bmm(kg[:, c].transpose(1, 2), new)
    return torch.stack(out, 1).view(N, S, -1)


@torch.compile(dynamic=False)
def _delta_in(x, moe, n1, wqkvz, wba, conv, a_log, dt, dims: tuple):
    B, S, kh, vh, K, V, eps = dims
    x = x + moe.float()
    h = norm(x, n1, eps).to(BF)
    y = (h @ wqkvz.t()).float().view(B, S, -1)
    ba = (h.float() @ wba.t()).view(B, S, 2 * vh)
    qkv, z = y.split([2 * kh * K + vh * V, vh * V], -1)
    w = conv.shape[1]
    padded = F.pad(qkv, (0, 0, w - 1, 0))
    qkv = F.silu(sum(padded[:, i : i + S] * conv[:, i] for i in range(w)))
    q, k, v = qkv.split([kh * K, kh * K, vh * V], -1)
    q, k = q.view(B, S, kh, K), k.view(B, S, kh, K)
    q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + 1e-6) * K**-0.5
    k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + 1e-6)
    q, k = (t.repeat_interleave(vh // kh, 2) for t in (q, k))
    q, k, v = (t.reshape(B, S, vh, -1).transpose(1, 2).reshape(B * vh, S, -1) for t in (q, k, v))
    beta = torch.sigmoid(ba[..., :vh]).transpose(1, 2).reshape(B * vh, S)
    g = (-torch.exp(a_log) * F.softplus(ba[..., vh:] + dt)).transpose(1, 2).reshape(B * vh, S)
    return x, q, k, v, g, beta, z.reshape(B, S, vh, V)


@torch.compile(dynamic=False)
def _delta_out(o, z, on, dims: tuple):
    B, S, kh, vh, K, V, eps = dims
    o = o.view(B, vh, S, V).transpose(1, 2)
    return (norm(o, on, eps) * F.silu(z)).reshape(B * S, vh * V).to(BF)


@torch.compile(dynamic=False)
def _attn_in(x, moe, n1, wqkv, qn, kn, cos, sin, dims: tuple):
    B, S, nh, nkv, hd, eps = dims
    x = x + moe.float()
    h = norm(x, n1, eps).to(BF)
    q, gate, k, v = (h @ wqkv.t()).view(B, S, 2 * nh + 2 * nkv, hd).split([nh, nh, nkv, nkv], 2)
    r = 2 * cos.shape[-1]
    turn = lambda t: torch.cat([_rope(t[..., :r], cos, sin), t[..., r:]], -1)
    q = turn(norm(q, qn, eps)).to(BF).transpose(1, 2)
    k = turn(norm(k, kn, eps)).to(BF).transpose(1, 2)
    v = v.transpose(1, 2)
    k, v = k.repeat_interleave(nh // nkv, 1), v.repeat_interleave(nh // nkv, 1)
    return (x, *(t.reshape(B * nh, S, hd).contiguous() for t in (q, k, v)), gate.reshape(B * S, nh * hd))


@torch.compile(dynamic=False)
def _attn_out(o, gate, dims: tuple):
    B, S, nh, nkv, hd, eps = dims
    o = o.view(B, nh, S, hd).transpose(1, 2).reshape(B * S, nh * hd)
    return (o.float() * torch.sigmoid(gate.float())).to(BF)


@torch.compile(dynamic=False)
def _mid(x, o, wo, n2, wr, eps: float):
    x = x + (o @ wo.t()).float()
    h = norm(x, n2, eps)
    return x, h.to(BF), h @ wr.t()


@torch.compile(dynamic=False)
def _shared(h, w1, w2, sg):
    return torch.sigmoid((h.float() @ sg)[:, None]).to(BF) * (_swiglu(h @ w1.t()) @ w2.t())


class HybridLM(nn.Module):
    def __init__(self, c: HybridConfig):
        super().__init__()
        self.c = c
        r = random_parameter
        H, hd, L = c.hidden, c.head_dim, c.layers
        self.emb = r(c.vocab, H, std=0.05)
        out = 1 / math.sqrt(2 * L)
        self.layers = nn.ModuleList()
        for l in range(L):
            m = nn.Module()
            m.n1, m.n2 = nn.Parameter(torch.ones(H)), nn.Parameter(torch.ones(H))
            if c.attends(l):
                m.qn, m.kn = nn.Parameter(torch.ones(hd)), nn.Parameter(torch.ones(hd))
                m.wqkv = r((2 * c.heads + 2 * c.kv_heads) * hd, H, std=H**-0.5)
                m.wo = r(H, c.heads * hd, std=out * (c.heads * hd) ** -0.5)
            else:
                channels, values = (
                    2 * c.key_heads * c.key_dim + c.value_heads * c.value_dim,
                    c.value_heads * c.value_dim,
                )
                m.wqkvz = r(channels + values, H, std=H**-0.5)
                m.wba = r(2 * c.value_heads, H, std=0.02)
                m.conv = r(channels, c.conv, std=c.conv**-0.5)
                m.a_log = nn.Parameter(torch.empty(c.value_heads).uniform_(0.5, 8).log())
                # Steps between 0.001 and 0.1 by softplus, as Mamba starts.
                step = torch.exp(torch.empty(c.value_heads).uniform_(math.log(1e-3), math.log(1e-1)))
                m.dt = nn.Parameter(step + torch.log(-torch.expm1(-step)))
                m.on = nn.Parameter(torch.ones(c.value_dim))
                m.wo = r(H, values, std=out * values**-0.5)
            add_experts(m, c)
            m.s1 = r(2 * c.shared, H, std=H**-0.5)
            m.s2 = r(H, c.shared, std=out * c.shared**-0.5)
            m.sg = nn.Parameter(torch.zeros(H))
            self.layers.append(m)
        self.nf = nn.Parameter(torch.ones(H))

    def forward(self, ids, y, w):
        c = self.c
        B, S = ids.shape
        turning = int(c.head_dim * c.rotary)
        f = c.theta ** (-torch.arange(0, turning, 2).float() / turning)
        a = torch.arange(S).float()[:, None] * f
        cos, sin = a.cos()[None, :, None, :], a.sin()[None, :, None, :]
        dims = (B, S, c.heads, c.kv_heads, c.head_dim, c.eps)
        delta = (B, S, c.key_heads, c.value_heads, c.key_dim, c.value_dim, c.eps)
        x = F.embedding(ids.view(-1), self.emb)
        moe = torch.zeros(B * S, c.hidden, dtype=BF)
        aux, load = 0.0, []
        for l, m in enumerate(self.layers):
            if c.attends(l):
                x, q, k, v, gate = _attn_in(x, moe, m.n1, m.wqkv.to(BF), m.qn, m.kn, cos, sin, dims)
                o = _attn_out(AttnFn.apply(q, k, v), gate, dims)
            else:
                x, q, k, v, g, beta, z = _delta_in(x, moe, m.n1, m.wqkvz.to(BF), m.wba, m.conv, m.a_log, m.dt, delta)
                o = _delta_out(delta_rule(q, k, v, g, beta), z, m.on, delta)
            x, h, logits = _mid(x, o, m.wo.to(BF), m.n2, m.wr, c.eps)
            routed, a_, f_ = feed_forward(m, c, h, logits)
            aux = aux + a_ / c.layers
            load.append(f_)
            moe = routed + _shared(h, m.s1.to(BF), m.s2.to(BF), m.sg)
        h = norm(x + moe.float(), self.nf, c.eps).to(BF)
        loss, nll = HeadLoss.apply(h, self.emb.to(BF), y.reshape(-1), w.reshape(-1), 1024)
        return loss, nll, aux, load
