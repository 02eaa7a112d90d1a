"""Trains a small Qwen3-MoE (or dense) language model on the CPU; export.py writes it in Hugging Face format.

  python train.py --data data --out run/e8 --steps 1500 --experts 8 --topk 2 --inter 192 --mix tasks=0.85,code=0.15
  python train.py --data data --out run/e64 --steps 1500 --hybrid --experts 64 --topk 8 --inter 48 --mix tasks=0.85,code=0.15

Muon for the matrices (attention and every expert), AdamW for embeddings, router and norms; warm-up, constant
rate, linear decay (WSD). The last part of training uses longer rows. An interrupted run goes on from its last
checkpoint when it is started again. For speed on a CPU preload jemalloc and set
  MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always,oversize_threshold:0
"""

import argparse
import json
import os
import time

import numpy as np
import torch
from hybrid import HybridConfig, HybridLM
from model import BF, LM, Config


class Rows:
    """Endless stream of rows of S+1 tokens with loss weights."""

    def __init__(self, path, S, docs, seed, wt):
        z = np.load(path)
        self.t, self.w, st = z["tokens"], z["weight"], z["starts"]
        self.S, self.wt, self.r = S, wt, np.random.default_rng(seed)
        n = len(self.t) - S - 1
        if docs:  # a row starts with a document; the one it cuts is begun again in the next row
            self.pos, p = [], 0
            while p <= n:
                self.pos.append(p)
                q = int(st[np.searchsorted(st, p + S, "right") - 1])
                p = q if q > p else p + S
        else:
            self.pos = list(range(0, n, S))
        self.pos, self.i, self.epoch = np.array(self.pos), 0, 0
        self.order = self.r.permutation(len(self.pos))

    def next(self, n):
        ids, ws = [], []
        for _ in range(n):
            if self.i >= len(self.order):
                self.order, self.i, self.epoch = self.r.permutation(len(self.pos)), 0, self.epoch + 1
            p = self.pos[self.order[self.i]]
            self.i += 1
            ids.append(self.t[p : p + self.S + 1])
            ws.append(np.where(self.w[p + 1 : p + self.S + 1] > 0, self.wt[1], self.wt[0]))
        return np.stack(ids).astype(np.int64), np.stack(ws).astype(np.float32)


class Muon:
    """Momentum, orthogonalised by Newton-Schulz iterations; all equal shapes in one batch."""

    def __init__(self, groups, wd, mom=0.95):
        self.groups, self.wd, self.mom = groups, wd, mom  # lists of (param, view) with equal view shapes
        self.buf = [torch.zeros(sum(v(p).shape[0] for p, v in g), *g[0][1](g[0][0]).shape[1:]) for g in groups]

    @torch.no_grad()
    def step(self, lr):
        for g, buf in zip(self.groups, self.buf):
            grad = torch.cat([v(p.grad) for p, v in g])
            buf.lerp_(grad, 1 - self.mom)
            x = grad.lerp_(buf, self.mom)
            x /= x.norm(dim=(1, 2), keepdim=True) + 1e-12  # experts without tokens stay at zero
            x = x.to(BF)
            tr = x.shape[1] > x.shape[2]
            if tr:
                x = x.transpose(1, 2).contiguous()
            for _ in range(5):
                a = torch.bmm(x, x.transpose(1, 2))
                x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
            if tr:
                x = x.transpose(1, 2)
            s = lr * max(1, x.shape[1] / x.shape[2]) ** 0.5
            i = 0
            for p, v in g:
                pv = v(p)
                pv.mul_(1 - lr * self.wd).add_(x[i : i + pv.shape[0]], alpha=-s)
                i += pv.shape[0]


def splits(name, c, rows):
    """Rows of each matrix that a fused weight of so many rows consists of."""
    if name == "qkv":
        return [rows // 3] * 3
    if name == "wqkv":
        kv = c.kv_heads * c.head_dim
        return [c.heads * c.head_dim] * (2 if isinstance(c, HybridConfig) else 1) + [kv, kv]
    if name == "wqkvz":
        keys, values = c.key_heads * c.key_dim, c.value_heads * c.value_dim
        return [keys, keys, values, values]
    return {"w1": [c.inter, c.inter], "s1": [c.shared, c.shared] if isinstance(c, HybridConfig) else None}.get(name)


def optimizers(m, c, lr_adam):
    """Muon for every matrix, those of one shape in one batch; AdamW for the rest."""
    last = lambda n: n.removesuffix(".weight").split(".")[-1]
    muon = {"wqkv", "wqkvz", "wo", "w1", "w2", "s1", "s2"}
    muon |= {"patch_embed", "qkv", "proj", "fc1", "fc2"}  # of a vision tower
    groups, rest, routers = {}, [], []
    for n, p in m.named_parameters():
        if last(n) not in muon:
            (routers if last(n) == "wr" else rest).append(p)
            continue
        start = 0
        for rows in splits(last(n), c, p.shape[-2]) or [p.shape[-2]]:
            place = lambda t, s=start, r=rows: t[..., s : s + r, :] if t.dim() == 3 else t[None, s : s + r, :]
            groups.setdefault((rows, p.shape[-1]), []).append((p, place))
            start += rows
    g = [{"params": rest, "scale": 1.0}] + ([{"params": routers, "scale": 1 / 3}] if routers else [])
    return Muon(list(groups.values()), wd=0.05), torch.optim.AdamW(
        g, lr=lr_adam, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--steps", type=int, required=True)
    ap.add_argument("--aux", type=float, default=0.01, help="coefficient of the load-balancing loss")
    ap.add_argument("--tokens", type=int, default=8192, help="tokens per step")
    ap.add_argument("--seq", type=int, default=256)
    ap.add_argument("--seq-end", type=int, default=512, help="row length in the last part")
    ap.add_argument("--long-from", type=float, default=0.85)
    ap.add_argument("--decay-from", type=float, default=0.5)
    ap.add_argument("--mix", default="tasks=0.55,prose=0.3,code=0.15")
    ap.add_argument("--lr", type=float, default=0.02)
    ap.add_argument("--lr-adam", type=float, default=3e-3)
    ap.add_argument("--save-minutes", type=float, default=8)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--hybrid", action="store_true", help="Gated DeltaNet in three of four layers, as Qwen3-Next")
    for n, v in dict(
        vocab=4096, hidden=256, layers=8, heads=4, kv_heads=2, head_dim=64, experts=32, topk=4, inter=96
    ).items():
        ap.add_argument("--" + n.replace("_", "-"), type=int, default=v)
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    sizes = (a.vocab, a.hidden, a.layers, a.heads, a.kv_heads, a.head_dim, a.experts, a.topk, a.inter)
    c = HybridConfig(*sizes, shared=a.inter) if a.hybrid else Config(*sizes)
    torch.manual_seed(a.seed)
    m = HybridLM(c) if a.hybrid else LM(c)
    muon, adam = optimizers(m, c, a.lr_adam)
    mix = {k: float(v) for k, v in (x.split("=") for x in a.mix.split(","))}
    WT = {"tasks": (0.1, 1.0), "prose": (0.5, 0.5), "code": (0.5, 0.5)}

    def open_rows(S):
        return {k: Rows(f"{a.data}/{k}.train.npz", S, k == "tasks", a.seed, WT[k]) for k in mix}

    def batch(rows, B):
        n = {k: round(B * v) for k, v in mix.items()}
        n["tasks"] += B - sum(n.values())
        parts = [rows[k].next(n[k]) for k in mix]
        ids, w = (torch.from_numpy(np.concatenate(x)) for x in zip(*parts))
        cuts = np.cumsum([n[k] for k in mix])[:-1]
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), w, cuts

    def by_domain(nll, w, B, cuts):
        out = {}
        for k, x, ww in zip(
            mix, nll.view(B, -1).tensor_split(list(map(int, cuts))), w.tensor_split(list(map(int, cuts)))
        ):
            f = ww == WT[k][1]
            out[k] = x[f].mean().item()
        return out

    def save():
        state = {"model": m.state_dict(), "config": c.__dict__, "step": step, "tokens": seen, "hybrid": a.hybrid}
        state |= {
            "adam": adam.state_dict(),
            "muon": muon.buf,
            "S": S,
            "rows": {k: (r.order, r.i, r.epoch) for k, r in rows.items()},
            "avg": avg,
        }
        torch.save(state, a.out + "/ckpt.tmp")
        os.replace(a.out + "/ckpt.tmp", a.out + "/ckpt.pt")

    print("parameters:", sum(p.numel() for p in m.parameters()), flush=True)
    S, B = a.seq, a.tokens // a.seq
    rows, step, seen, avg = open_rows(S), 0, 0, {}
    if os.path.exists(a.out + "/ckpt.pt"):  # goes on where an interrupted run saved; --steps must be the same
        z = torch.load(a.out + "/ckpt.pt", weights_only=False)
        m.load_state_dict(z["model"])
        adam.load_state_dict(z["adam"])
        muon.buf, step, seen, avg, S = z["muon"], z["step"], z["tokens"], z["avg"], z["S"]
        B, rows = a.tokens // S, open_rows(S)
        for k in rows:
            rows[k].order, rows[k].i, rows[k].epoch = z["rows"][k]
        print("goes on at step", step, flush=True)
    t0 = t_save = t_log = time.time()
    while True:
        prog = step / a.steps
        if prog >= 1:
            break
        if prog >= a.long_from and a.seq_end != S:
            old, S, B = rows, a.seq_end, a.tokens // a.seq_end
            rows = open_rows(S)
            for k in rows:
                rows[k].epoch = old[k].epoch
        ids, y, w, cuts = batch(rows, B)
        lr = min(1, (step + 1) / 100) * min(1, (1 - prog) / (1 - a.decay_from))
        loss, nll, aux, load = m(ids, y, w / w.sum())
        (loss + a.aux * aux).backward()
        for g in adam.param_groups:
            g["lr"] = a.lr_adam * lr * g["scale"]
        muon.step(a.lr * lr)
        adam.step()
        for p in m.parameters():
            p.grad = None
        step, seen = step + 1, seen + a.tokens
        d = by_domain(nll, w, B, cuts) | {"aux": float(torch.as_tensor(aux).detach())}
        for k, v in d.items():
            avg[k] = avg.get(k, v) * 0.95 + 0.05 * v
        if step % 20 == 0 or step < 4:
            now = time.time()
            rec = {
                "step": step,
                "tokens": seen,
                "min": round((now - t0) / 60, 2),
                "lr": round(lr, 4),
                "seq": S,
                "tok_s": round(20 * a.tokens / (now - t_log)),
                **{k: round(v, 4) for k, v in avg.items()},
            }
            if load:
                f = torch.stack(load) * c.experts / c.topk
                rec["load_max"], rec["load_min"] = round(f.max().item(), 2), round(f.min().item(), 3)
            rec["epochs"] = {k: rows[k].epoch for k in rows}
            t_log = now
            print(json.dumps(rec), flush=True)
        if time.time() - t_save > a.save_minutes * 60:
            save()
            t_save = time.time()
    save()
    print("done:", step, "steps,", seen, "tokens,", round((time.time() - t0) / 60, 1), "minutes", flush=True)
