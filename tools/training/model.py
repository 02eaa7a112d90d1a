"""A compact Qwen3-MoE (and dense Qwen3) for training on a CPU, with the arithmetic of the stock classes.

The MoE feed-forward is dropless: tokens are sorted by expert and every expert multiplies exactly its own rows,
in bf16, with a hand-written backward pass. Everything between two MoE layers is one compiled region with static
shapes. Parameters are fp32; `export.py` writes them in the hub's tensor naming.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

BF = torch.bfloat16
PAD = 128


@dataclass
class Config:
    vocab: int = 4096
    hidden: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    experts: int = 32  # 0: dense feed-forward of width `inter`
    topk: int = 4
    inter: int = 96
    theta: float = 10000.0
    eps: float = 1e-6


@torch.compile(dynamic=False)
def _act_fwd(h, gs):
    g, u = h.float().chunk(2, -1)
    return (F.silu(g) * u * gs[:, None]).to(BF)


@torch.compile(dynamic=False)
def _act_bwd(h, gs, da):
    g, u = h.float().chunk(2, -1)
    da = da.float()
    s = torch.sigmoid(g)
    sg = g * s
    dgs = (da * sg * u).sum(-1)
    da = da * gs[:, None]
    return torch.cat([da * u * (s + sg * (1 - s)), da * sg], -1).to(BF), dgs


@torch.compile(dynamic=False)
def _combine(ys, inv, k: int):
    n = inv.shape[0] // k
    return ys[inv].view(n, k, -1).float().sum(1).to(BF)


class MoEFn(torch.autograd.Function):
    """x [N,H] bf16, gates [N,k] fp32, idx [N,k], w1 [E,2I,H], w2 [E,H,I] bf16 -> [N,H] bf16."""

    @staticmethod
    def forward(ctx, x, gates, idx, w1, w2):
        k, E = idx.shape[1], w1.shape[0]
        flat = idx.reshape(-1)
        M = flat.numel()
        order = torch.argsort(flat)
        n = torch.bincount(flat, minlength=E)
        # each expert's rows are padded to a multiple of PAD, so that few matmul shapes occur (each costs a JIT);
        # padding rows have gate 0, and so contribute nothing forward or backward
        cap = (n + PAD - 1) // PAD * PAD
        shift = (cap.cumsum(0) - cap) - (n.cumsum(0) - n)
        pos = torch.arange(M) + shift[flat[order]]
        ends = cap.cumsum(0).tolist()
        ends[-1] = M + E * PAD
        inv = torch.empty_like(order)
        inv[order] = pos
        tok, gs = order.new_zeros(ends[-1]), gates.new_zeros(ends[-1])
        tok[pos] = order // k
        gs[pos] = gates.reshape(-1)[order]
        xs = x.index_select(0, tok)
        h = xs.new_empty(xs.shape[0], w1.shape[1])
        s = 0
        for e, t in enumerate(ends):
            if t > s:
                torch.mm(xs[s:t], w1[e].t(), out=h[s:t])
            s = t
        a = _act_fwd(h, gs)
        ys = torch.empty_like(xs)
        s = 0
        for e, t in enumerate(ends):
            if t > s:
                torch.mm(a[s:t], w2[e].t(), out=ys[s:t])
            s = t
        ctx.save_for_backward(x, w1, w2, tok, inv, gs, h, a)
        ctx.ends, ctx.k = ends, k
        return _combine(ys, inv, k)

    @staticmethod
    def backward(ctx, do):
        x, w1, w2, tok, inv, gs, h, a = ctx.saved_tensors
        xs = x.index_select(0, tok)
        dys = do.contiguous().index_select(0, tok)
        dw1, dw2, da = torch.zeros_like(w1), torch.zeros_like(w2), torch.empty_like(a)
        s = 0
        for e, t in enumerate(ctx.ends):
            if t > s:
                torch.mm(dys[s:t].t(), a[s:t], out=dw2[e])
                torch.mm(dys[s:t], w2[e], out=da[s:t])
            s = t
        dh, dgs = _act_bwd(h, gs, da)
        dxs = dys
        s = 0
        for e, t in enumerate(ctx.ends):
            if t > s:
                torch.mm(dh[s:t].t(), xs[s:t], out=dw1[e])
                torch.mm(dh[s:t], w1[e], out=dxs[s:t])
            s = t
        return _combine(dxs, inv, ctx.k), dgs[inv].view(-1, ctx.k), None, dw1, dw2


@torch.compile(dynamic=False)
def _ce_chunk(logits, y, w):
    z = logits.float()
    m = z.max(-1, keepdim=True).values
    p = torch.exp(z - m)
    s = p.sum(-1, keepdim=True)
    nll = (s.log() + m).squeeze(-1) - z.gather(1, y[:, None]).squeeze(1)
    d = (p / s - F.one_hot(y, z.shape[1])) * w[:, None]
    return nll, d.to(BF)


class HeadLoss(torch.autograd.Function):
    """Fused output head and weighted cross-entropy, in chunks that stay in the cache."""

    @staticmethod
    def forward(ctx, x, emb, y, w, chunk):
        dx, demb = torch.empty_like(x), torch.zeros(emb.shape)
        nll = torch.empty(x.shape[0])
        for i in range(0, x.shape[0], chunk):
            c = slice(i, i + chunk)
            nll[c], d = _ce_chunk(x[c] @ emb.t(), y[c], w[c])
            dx[c] = d @ emb
            demb += d.t() @ x[c]
        ctx.save_for_backward(dx, demb)
        ctx.mark_non_differentiable(nll)
        return (nll * w).sum(), nll

    @staticmethod
    def backward(ctx, g, _):
        dx, demb = ctx.saved_tensors
        return dx * g.to(BF), (demb * g).to(BF), None, None, None


def norm(x, w, eps):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


def _rope(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


@torch.compile(dynamic=False)
def _softmax(s, scale: float):
    S = s.shape[-1]
    z = s.float() * scale
    z = z.masked_fill(torch.arange(S)[None, :, None] < torch.arange(S)[None, None, :], float("-inf"))
    p = torch.exp(z - z.max(-1, keepdim=True).values)
    return (p / p.sum(-1, keepdim=True)).to(BF)


@torch.compile(dynamic=False)
def _softmax_bwd(p, dp, scale: float):
    p, dp = p.float(), dp.float()
    return (p * (dp - (p * dp).sum(-1, keepdim=True)) * scale).to(BF)


class AttnFn(torch.autograd.Function):
    """Causal attention on [B*heads, S, hd] bf16; at these short lengths plain bmm beats the flash kernel."""

    @staticmethod
    def forward(ctx, q, k, v):
        p = _softmax(torch.bmm(q, k.transpose(1, 2)), q.shape[-1] ** -0.5)
        ctx.save_for_backward(q, k, v, p)
        return torch.bmm(p, v)

    @staticmethod
    def backward(ctx, do):
        q, k, v, p = ctx.saved_tensors
        do = do.contiguous()
        ds = _softmax_bwd(p, torch.bmm(do, v.transpose(1, 2)), q.shape[-1] ** -0.5)
        return torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), torch.bmm(p.transpose(1, 2), do)


@torch.compile(dynamic=False)
def _pre(x, moe, n1, wqkv, qn, kn, cos, sin, dims: tuple):
    """Adds the previous layer's MoE output; norm, projections, q/k norm, rotary -> x, q, k, v"""
    B, S, nh, nkv, hd, eps = dims
    x = x + moe.float()
    h = norm(x, n1, eps).to(BF)
    q, k, v = (h @ wqkv.t()).view(B, S, nh + 2 * nkv, hd).split([nh, nkv, nkv], 2)
    q = _rope(norm(q, qn, eps), cos, sin).to(BF).transpose(1, 2)
    k = _rope(norm(k, kn, eps), cos, sin).to(BF).transpose(1, 2)
    v = v.transpose(1, 2)
    if nkv != nh:
        k, v = k.repeat_interleave(nh // nkv, 1), v.repeat_interleave(nh // nkv, 1)
    return x, *(t.reshape(B * nh, S, hd).contiguous() for t in (q, k, v))


@torch.compile(dynamic=False)
def _post(x, o, wo, n2, wr, dims: tuple):
    """Output projection and residual, norm, router logits"""
    B, S, nh, nkv, hd, eps = dims
    o = o.view(B, nh, S, hd).transpose(1, 2).reshape(B * S, nh * hd)
    x = x + (o @ wo.t()).float()
    h = norm(x, n2, eps)
    return x, h.to(BF), (h @ wr.t() if wr is not None else None)


@torch.compile(dynamic=False)
def _route(logits, k: int):
    p = logits.softmax(-1)
    tw, idx = p.topk(k, -1)
    E = p.shape[1]
    f = F.one_hot(idx, E).float().sum(1).mean(0)  # sums to k
    return tw / tw.sum(-1, keepdim=True), idx, E * (f * p.mean(0)).sum(), f


@torch.compile(dynamic=False)
def _swiglu(h):
    g, u = h.float().chunk(2, -1)
    return (F.silu(g) * u).to(BF)


def feed_forward(m, c, h, logits):
    """h [N,H] bf16 -> output [N,H] bf16; of experts also the auxiliary loss and the load of each."""
    if c.experts:
        gates, idx, aux, load = _route(logits, c.topk)
        return MoEFn.apply(h, gates, idx, m.w1.to(BF), m.w2.to(BF)), aux, load.detach()
    return _swiglu(h @ m.w1.to(BF).t()) @ m.w2.to(BF).t(), 0.0, None


def random_parameter(*shape, std):
    return nn.Parameter(torch.randn(*shape) * std)


def add_experts(m, c):
    """Gives a layer its router and experts."""
    r, out = random_parameter, 1 / math.sqrt(2 * c.layers)
    m.wr = r(c.experts, c.hidden, std=0.02)
    m.w1 = r(c.experts, 2 * c.inter, c.hidden, std=c.hidden**-0.5)
    m.w2 = r(c.experts, c.hidden, c.inter, std=out * c.inter**-0.5)


class LM(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        r = random_parameter
        H, hd, L = c.hidden, c.head_dim, c.layers
        self.emb = r(c.vocab, H, std=0.05)
        out = 1 / math.sqrt(2 * L)
        self.layers = nn.ModuleList()
        for _ in range(L):
            m = nn.Module()
            m.n1, m.n2 = nn.Parameter(torch.ones(H)), nn.Parameter(torch.ones(H))
            m.qn, m.kn = nn.Parameter(torch.ones(hd)), nn.Parameter(torch.ones(hd))
            m.wqkv = r((c.heads + 2 * c.kv_heads) * hd, H, std=H**-0.5)
            m.wo = r(H, c.heads * hd, std=out * (c.heads * hd) ** -0.5)
            if c.experts:
                add_experts(m, c)
            else:
                m.w1 = r(2 * c.inter, H, std=H**-0.5)
                m.w2 = r(H, c.inter, std=out * c.inter**-0.5)
            self.layers.append(m)
        self.nf = nn.Parameter(torch.ones(H))

    def rope(self, S):
        f = self.c.theta ** (-torch.arange(0, self.c.head_dim, 2).float() / self.c.head_dim)
        a = torch.arange(S).float()[:, None] * f
        return a.cos()[None, :, None, :], a.sin()[None, :, None, :]

    def forward(self, ids, y, w):
        """-> weighted loss (w sums to 1), loss per token, mean auxiliary loss, load per layer and expert"""
        c = self.c
        B, S = ids.shape
        cos, sin = self.rope(S)
        dims = (B, S, c.heads, c.kv_heads, c.head_dim, c.eps)
        emb = self.emb.to(BF)
        x = F.embedding(ids.view(-1), self.emb)
        moe = torch.zeros(B * S, c.hidden, dtype=BF)
        aux, load = 0.0, []
        for m in self.layers:
            x, q, k, v = _pre(x, moe, m.n1, m.wqkv.to(BF), m.qn, m.kn, cos, sin, dims)
            x, h, logits = _post(x, AttnFn.apply(q, k, v), m.wo.to(BF), m.n2, m.wr if c.experts else None, dims)
            moe, a, f = feed_forward(m, c, h, logits)
            aux = aux + a / c.layers
            if c.experts:
                load.append(f)
        h = norm(x + moe.float(), self.nf, c.eps).to(BF)
        loss, nll = HeadLoss.apply(h, emb, y.reshape(-1), w.reshape(-1), 1024)
        return loss, nll, aux, load
