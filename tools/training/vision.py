"""Trains a small Qwen3-VL-MoE to answer questions about the pictures of pictures.py, from the weights of lynx-nano.

    go="python vision.py --text models/lynx-nano --out run/vision"
    $go --steps 3000 --until 293 --lines 1 --pictures 128 --patches 48 --length 48
    $go --steps 1600 --until 653 --pictures 32
    $go --steps 980 --pictures 32 --readings 0.2

It goes on from the last step of --out. Training begins with small pictures of text, since on whole pictures alone the loss stays at
what can be guessed: there a question has two or three tokens to learn from, and forty tokens of an image to find them in. The text part
is lynx-nano without two of its eight layers; a tower of four layers with DeepStack is trained from scratch. The arithmetic is that of
transformers' Qwen3VLMoe: interleaved M-RoPE, bilinear positions, rows of the tower in merge blocks. One sequence is a picture and all of
its questions, in random order; the loss counts the answers. With --dense the text part is a dense one (Qwen3-VL), to compare.
"""

import argparse
import dataclasses
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from hybrid import HybridConfig  # noqa: F401  (train.py's optimizers look at it)
from model import BF, LM, AttnFn, Config, HeadLoss, _post, _pre, feed_forward, norm
from pictures import FAMILIES, lines_of_text, picture, reading
from safetensors.torch import load_file
from tokenizers import Tokenizer
from train import optimizers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lynx_rt.vision.preprocess import ImageProcessorConfig, patches_of

KEPT = (0, 1, 2, 5, 6, 7)  # layers of lynx-nano
SECTION = (12, 10, 10)  # frequencies of time, height and width, of 32
IMAGE = ImageProcessorConfig(patch_size=8, min_pixels=256, max_pixels=256 * 256)
START, PAD, END = 4096, 4097, 4098  # ids of <|vision_start|>, <|image_pad|>, <|vision_end|>
TEXT = Config(vocab=END + 1, layers=len(KEPT), heads=4, kv_heads=2, head_dim=64)


@dataclasses.dataclass
class TowerConfig:
    depth: int = 4
    hidden: int = 192
    heads: int = 4
    inter: int = 576
    side: int = 16  # position rows of one side
    patch: int = 3 * 2 * 8 * 8
    merge: int = 2
    out: int = 256
    deepstack: tuple = (1, 2)


class Tower(nn.Module):
    def __init__(self, c: TowerConfig):
        super().__init__()
        self.c, h = c, c.hidden
        self.patch_embed, self.pos = nn.Linear(c.patch, h), nn.Parameter(torch.randn(c.side**2, h) * 0.02)
        self.blocks = nn.ModuleList()
        for _ in range(c.depth):
            m = nn.Module()
            m.norm1, m.norm2 = nn.LayerNorm(h, eps=1e-6), nn.LayerNorm(h, eps=1e-6)
            m.qkv, m.proj = nn.Linear(h, 3 * h), nn.Linear(h, h)
            m.fc1, m.fc2 = nn.Linear(h, c.inter), nn.Linear(c.inter, h)
            self.blocks.append(m)
        self.merger = self._merger(h)
        self.deep = nn.ModuleList(self._merger(h * c.merge**2) for _ in c.deepstack)

    def _merger(self, normed):
        m, wide = nn.Module(), self.c.hidden * self.c.merge**2
        m.norm, m.fc1, m.fc2 = nn.LayerNorm(normed, eps=1e-6), nn.Linear(wide, wide), nn.Linear(wide, self.c.out)
        return m

    def _merge(self, m, x, after):
        wide = self.c.hidden * self.c.merge**2
        x = (
            m.norm(x.float().view(*x.shape[:-2], -1, wide))
            if after
            else m.norm(x.float()).view(*x.shape[:-2], -1, wide)
        )
        return m.fc2(F.gelu(m.fc1(x)))

    def forward(self, rows, places, mask):
        """rows [B,N,patch], places [B,N,2] row and column of each patch, grid sides in mask [B,N] -> [B,N/4,out], list of those."""
        c = self.c
        with torch.autocast("cpu", BF):
            x = self.patch_embed(rows).float() + self.positions(places, mask)
            d = c.hidden // c.heads
            inv = 1 / 10000 ** (torch.arange(0, d // 2, 2).float() / (d // 2))
            a = torch.cat([places[..., :1] * inv, places[..., 1:] * inv], -1)[:, :, None]  # [B,N,1,d/2]
            cos, sin = a.cos(), a.sin()
            seen = mask[:, None, None, :].bool()
            deep = []
            for layer, m in enumerate(self.blocks):
                q, k, v = m.qkv(m.norm1(x)).float().view(*x.shape[:2], 3, c.heads, d).unbind(2)
                turn = lambda t: torch.cat([t[..., : d // 2] * cos - t[..., d // 2 :] * sin,
                                            t[..., d // 2 :] * cos + t[..., : d // 2] * sin], -1)  # fmt: skip
                q, k, v = (t.transpose(1, 2).to(BF) for t in (turn(q), turn(k), v))
                o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).reshape(*x.shape[:2], -1)
                x = x + m.proj(o).float()
                x = x + m.fc2(F.gelu(m.fc1(m.norm2(x)), approximate="tanh")).float()
                if layer in c.deepstack:
                    deep.append(self._merge(self.deep[c.deepstack.index(layer)], x, True))
            return self._merge(self.merger, x, False), deep

    def positions(self, places, mask):
        """Bilinear positions. The grid of a picture is what its last patch says."""
        side = self.c.side
        size = places.amax(1, keepdim=True).clamp(min=1)
        at = places * (side - 1) / size
        low = at.floor().long()
        high = (low + 1).clamp(max=side - 1)
        f = at - low
        table = lambda r, k: self.pos[r * side + k]
        ry, rx = f[..., :1], f[..., 1:]
        return ((1 - ry) * (1 - rx) * table(low[..., 0], low[..., 1]) + (1 - ry) * rx * table(low[..., 0], high[..., 1])
                + ry * (1 - rx) * table(high[..., 0], low[..., 1]) + ry * rx * table(high[..., 0], high[..., 1]))  # fmt: skip


class VisionLM(LM):
    def __init__(self, c: Config, tower: TowerConfig):
        super().__init__(c)
        self.tower = Tower(tower)

    def forward(self, ids, y, w, pos, rows, places, mask, image):
        """pos [B,S,3]; image [B,S] bool: image tokens. -> loss, loss per token, auxiliary loss"""
        c = self.c
        B, S = ids.shape
        n = c.head_dim // 2
        f = c.theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        axis = torch.zeros(n, dtype=torch.long)
        for a in (1, 2):
            axis[a : SECTION[a] * 3 : 3] = a
        angle = (pos[..., axis].float() * f)[:, :, None]
        cos, sin = angle.cos(), angle.sin()
        dims = (B, S, c.heads, c.kv_heads, c.head_dim, c.eps)
        merged, deep = self.tower(rows, places, mask)
        real = mask[:, :: self.tower.c.merge**2].bool()
        place = image.view(-1).nonzero().squeeze(1)
        x = F.embedding(ids.view(-1), self.emb).index_put((place,), merged[real].float())
        moe, aux = torch.zeros(B * S, c.hidden, dtype=BF), 0.0
        for l, m in enumerate(self.layers):
            x, q, k, v = _pre(x, moe, m.n1, m.wqkv.to(BF), m.qn, m.kn, cos, sin, dims)
            x, h, logits = _post(x, AttnFn.apply(q, k, v), m.wo.to(BF), m.n2, m.wr if c.experts else None, dims)
            moe, a, _ = feed_forward(m, c, h, logits)
            aux = aux + a / c.layers
            if l < len(deep):
                x = x.index_add(0, place, deep[l][real].float())
        h = norm(x + moe.float(), self.nf, c.eps).to(BF)
        loss, nll = HeadLoss.apply(h, self.emb.to(BF), y.reshape(-1), w.reshape(-1), 1024)
        return loss, nll, aux


def dense(width):
    """Returns the configuration of a text part whose MLPs are dense and so wide."""
    return dataclasses.replace(TEXT, experts=0, inter=width)


def from_nano(folder, seed, c=TEXT):
    """Returns a VisionLM whose text part is lynx-nano's, without two layers.

    A dense MLP begins as the first experts side by side, as many as fit. Their sum is scaled to the size that the chosen ones' mean has if
    experts are not correlated.
    """
    torch.manual_seed(seed)
    m, count = VisionLM(c, TowerConfig()), TEXT.experts if c.experts else c.inter // TEXT.inter
    t = {k: v.float() for k, v in load_file(f"{folder}/model.safetensors").items()}
    with torch.no_grad():
        m.emb[:4096] = t["model.embed_tokens.weight"]
        m.nf.copy_(t["model.norm.weight"])
        for layer, source in zip(m.layers, KEPT, strict=True):
            p = f"model.layers.{source}."
            layer.n1.copy_(t[p + "input_layernorm.weight"])
            layer.n2.copy_(t[p + "post_attention_layernorm.weight"])
            layer.qn.copy_(t[p + "self_attn.q_norm.weight"])
            layer.kn.copy_(t[p + "self_attn.k_norm.weight"])
            layer.wqkv.copy_(torch.cat([t[f"{p}self_attn.{n}_proj.weight"] for n in "qkv"]))
            layer.wo.copy_(t[p + "self_attn.o_proj.weight"])
            gates, ups, downs = (
                [t[f"{p}mlp.experts.{e}.{n}_proj.weight"] for e in range(count)] for n in ("gate", "up", "down")
            )
            if c.experts:
                layer.wr.copy_(t[p + "mlp.gate.weight"])
                layer.w1.copy_(torch.cat([torch.stack(gates), torch.stack(ups)], 1))
                layer.w2.copy_(torch.stack(downs))
            else:
                layer.w1.copy_(torch.cat([*gates, *ups]))
                layer.w2.copy_(torch.cat(downs, 1) / (TEXT.topk * count) ** 0.5)
    return m


class Samples:
    """Sequences of a picture and its questions, without end. Pictures of training have even seeds, held-out ones odd seeds.

    readings, lines: shares of pictures whose question asks for everything on them, and of small pictures of text.
    """

    def __init__(self, tokenizer, seed, length, readings=0.0, lines=0.0):
        self.readings, self.lines = readings, lines
        self.tok, self.r, self.length = Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), random.Random(seed), length

    def one(self):
        family = self.r.choice(list(FAMILIES))
        ask = reading if self.r.random() < self.readings else picture
        seed = 2 * self.r.randrange(1 << 40)
        image, items = lines_of_text(seed) if self.r.random() < self.lines else ask(family, seed)
        patches = patches_of(np.asarray(image), IMAGE)
        h, w = patches.grid_height, patches.grid_width
        count = h * w // 4
        ids, weight = [1, START, *[PAD] * count, END], [0.0] * (count + 3)
        self.r.shuffle(items)
        for item in items:
            prompt = self.tok.encode(f"Q: {item.question}\nA:", add_special_tokens=False).ids
            answer = [*self.tok.encode(f" {item.answer}", add_special_tokens=False).ids, 2]
            ids += prompt + answer
            weight += [0.02] * len(prompt) + [1.0] * len(answer)
        pos, cur = [(0,) * 3, (1,) * 3], 2
        pos += [(cur, cur + r, cur + k) for r in range(h // 2) for k in range(w // 2)]
        cur += max(h, w) // 2
        pos += [(cur + i,) * 3 for i in range(len(ids) - len(pos))]
        places = [
            (2 * br + r, 2 * bc + k) for br in range(h // 2) for bc in range(w // 2) for r in range(2) for k in range(2)
        ]
        return ids, weight, pos, patches.rows, places

    def batch(self, n, patches):
        S = self.length
        ids, w, pos = np.zeros((n, S + 1), np.int64), np.zeros((n, S), np.float32), np.zeros((n, S, 3), np.int64)
        rows = np.zeros((n, patches, TowerConfig.patch), np.float32)
        places, mask = np.zeros((n, patches, 2), np.float32), np.zeros((n, patches), np.float32)
        for b in range(n):
            i, ww, p, r, pl = self.one()
            m = min(len(i), S + 1)
            ids[b, :m], w[b, : m - 1], pos[b, : m - 1] = i[:m], ww[1:m], p[: m - 1]
            rows[b, : len(r)], places[b, : len(r)], mask[b, : len(r)] = r, pl, 1
        x, y = ids[:, :-1], ids[:, 1:]
        return [torch.from_numpy(np.ascontiguousarray(t)) for t in (x, y, w, pos, rows, places, mask, x == PAD)]


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--text", required=True, help="folder of lynx-nano")
    ap.add_argument("--out", required=True)
    ap.add_argument(
        "--steps", type=int, default=2400, help="of the learning rate: constant, then falling over the last half"
    )
    ap.add_argument("--until", type=int, help="step to end at, before the last one")
    ap.add_argument("--dense", type=int, metavar="WIDTH", help="MLPs of this width, a multiple of 96, for experts")
    ap.add_argument("--pictures", type=int, default=64, help="per step")
    ap.add_argument("--patches", type=int, default=224, help="of the largest picture")
    ap.add_argument("--lines", type=float, default=0.0, help="share of small pictures of one or two lines of text")
    ap.add_argument("--readings", type=float, default=0.4, help="share of pictures that ask for everything on them")
    ap.add_argument("--length", type=int, default=128)
    ap.add_argument("--lr", type=float, default=0.01)
    ap.add_argument("--lr-adam", type=float, default=1.5e-3)
    ap.add_argument("--aux", type=float, default=0.01)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--save-minutes", type=float, default=10)
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    m = from_nano(a.text, a.seed, dense(a.dense) if a.dense else TEXT)
    print("parameters:", sum(p.numel() for p in m.parameters()), flush=True)
    muon, adam = optimizers(m, m.c, a.lr_adam)
    step, avg = 0, {}
    path = a.out + "/ckpt.pt"
    if os.path.exists(path):
        z = torch.load(path, weights_only=False)
        m.load_state_dict(z["model"])
        adam.load_state_dict(z["adam"])
        muon.buf, step, avg = z["muon"], z["step"], z["avg"]
        print("goes on at step", step, flush=True)
    samples = Samples(a.text, a.seed * 1000 + step, a.length, a.readings, a.lines)

    def save():
        torch.save(
            {"model": m.state_dict(), "adam": adam.state_dict(), "muon": muon.buf, "step": step, "avg": avg}
            | {"config": dataclasses.asdict(m.c)},
            path + ".tmp",
        )
        os.replace(path + ".tmp", path)

    t0 = t_save = time.time()
    while step < min(a.steps, a.until or a.steps):
        x = samples.batch(a.pictures, a.patches)
        lr = min(1, (step + 1) / 100) * min(1, (1 - step / a.steps) / 0.5)
        w = x[2]
        loss, nll, aux = m(x[0], x[1], w / w.sum(), *x[3:])
        (loss + a.aux * aux).backward()
        for g in adam.param_groups:
            g["lr"] = a.lr_adam * lr * g["scale"]
        muon.step(a.lr * lr)
        adam.step()
        for p in m.parameters():
            p.grad = None
        step += 1
        answers = nll[(w == 1).view(-1)].mean().item()
        avg["answers"] = avg.get("answers", answers) * 0.97 + 0.03 * answers
        if step % 20 == 0 or step < 4:
            print(
                json.dumps(
                    {"step": step, "min": round((time.time() - t0) / 60, 2), "answers": round(avg["answers"], 4)}
                ),
                flush=True,
            )
        if time.time() - t_save > a.save_minutes * 60:
            save()
            t_save = time.time()
    save()
