"""A small network that guesses a token's experts in all layers from the tokens before it, after ExpertFlow (arXiv 2410.17954).

    python -m lynx_rt.research.expert_network TRAIN.npz --out NETWORK.npz --test OTHER.npz
    lynx-rt simulate OTHER.npz --residents 0.25 --prefetch network:file=NETWORK.npz

TRAIN.npz is what `lynx-rt record` wrote. The network is an encoder-decoder as T5's, of one block each: the encoder sees the last `window`
tokens of prompt and answer, the decoder asks for each layer once, and each layer has a head over its experts. It learns each expert's
use as a yes or no (binary cross-entropy), as the paper says; hidden and FFN size are the paper's too (32, 2048; second-hand). Training
needs PyTorch (`pip install lynx_rt[network]`), using a network needs numpy alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lynx_rt.errors import ValidationError
from lynx_rt.research.recording import Recording, uses

_HEADS = 4
_BATCH = 256  # rows computed together


@dataclass(frozen=True, eq=False)
class ExpertNetwork:
    """V tokens and one for "none", W tokens of window, H hidden, F of the feed-forward, L layers, E experts."""

    weights: dict[str, NDArray[np.float32]]

    def scores(self, recording: Recording) -> NDArray[np.float32]:
        """Returns [N, L, E]: logits of the use of each expert by each row. Raises ValidationError for a recording of another shape, or
        without prompts."""
        shape = self.weights["head"].shape[0], self.weights["head"].shape[2]
        if shape != recording.scores.shape[1:]:
            raise ValidationError(
                f"prefetch: the network has {shape[0]} layers of {shape[1]} experts, the recording {recording.scores.shape[1:]}",
                "prefetch",
            )
        tokens = windows(recording, len(self.weights["position"]), len(self.weights["token"]) - 1)
        out = np.empty(recording.scores.shape, np.float32)
        for i in range(0, len(tokens), _BATCH):
            out[i : i + _BATCH] = forward(self.weights, tokens[i : i + _BATCH], np)
        return out

    def save(self, path: str | Path) -> None:
        """Writes one .npz file, under exactly this name."""
        with Path(path).open("wb") as file:
            np.savez(file, **self.weights)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> ExpertNetwork:
        """Reads a file of save(). Raises ValidationError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                weights = {name: file[name] for name in make_weights(1, 1, 1, 4, 1, 1)}
        except Exception as error:  # numpy and zipfile raise many types for a damaged file
            raise ValidationError(f"prefetch: {path} is no network: {error!r}", "prefetch") from None
        return cls(weights)


def windows(recording: Recording, length: int, vocabulary: int) -> NDArray[np.int64]:
    """Returns [N, length]: the tokens up to that of each row, last; `vocabulary` where there is none, or one that the network has not."""
    if len(recording.token) != len(recording) or not np.isin(recording.request, recording.prompt_request).all():
        raise ValidationError(
            "prefetch: network needs the tokens of prompts and rows, which the recording lacks; record it again with this version",
            "prefetch",
        )
    out = np.full((len(recording), length), vocabulary, np.int64)
    rows_of = _by_request(recording.request)
    prompt_of = _by_request(recording.prompt_request)
    for request, rows in rows_of.items():
        tokens = np.concatenate([recording.prompt_token[prompt_of[request]], recording.token[rows]])
        for i, row in enumerate(rows):
            seen = tokens[: len(tokens) - len(rows) + i + 1][-length:]
            out[row, length - len(seen) :] = seen
    out[(out < 0) | (out > vocabulary)] = vocabulary
    return out


def _by_request(request: NDArray[np.uint64]) -> dict[int, NDArray[np.intp]]:
    """Returns the places of each request, in order."""
    numbers, counts = np.unique(request, return_counts=True)
    parts = np.split(np.argsort(request, kind="stable"), np.cumsum(counts)[:-1])
    return dict(zip(numbers.tolist(), parts, strict=True)) if len(numbers) else {}


def make_weights(
    vocabulary: int, window: int, layers: int, hidden: int, ffn: int, experts: int, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Returns weights to begin training with."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / math.sqrt(shape[-2])).astype(np.float32)

    weights = {
        "token": rng.standard_normal((vocabulary + 1, hidden)).astype(np.float32),
        "position": 0.3 * rng.standard_normal((window, hidden)).astype(np.float32),
        "query": rng.standard_normal((layers, hidden)).astype(np.float32),
        "head": normal(layers, hidden, experts),
        "bias": np.zeros((layers, experts), np.float32),
    }
    for block in ("encoder", "decoder"):
        weights |= {f"{block}.{name}": normal(hidden, hidden) for name in ("q", "k", "v", "o")}
        weights |= {f"{block}.up": normal(hidden, ffn), f"{block}.down": normal(ffn, hidden)}
    return weights


def forward(w: Any, tokens: Any, xp: Any) -> Any:
    """Returns logits [B, L, E] for tokens [B, W]. xp: numpy, or torch where the weights are its tensors, in training."""
    x = w["token"][tokens] + w["position"]
    there = (tokens != len(w["token"]) - 1)[:, None, None, :]  # [B, 1, 1, W]
    # The last token is always there, so that no row of the softmax is empty.
    x = x + _attention(w, "encoder", _norm(x, xp), _norm(x, xp), there, xp)
    x = x + _feed_forward(w, "encoder", _norm(x, xp))
    memory = _norm(x, xp)
    # The decoder starts from the last token's state beside the layer's query.
    y = w["query"] + x[:, -1:]
    y = y + _attention(w, "decoder", _norm(y, xp), memory, there, xp)
    y = y + _feed_forward(w, "decoder", _norm(y, xp))
    return xp.einsum("blh,lhe->ble", _norm(y, xp), w["head"]) + w["bias"]


def _norm(x: Any, xp: Any) -> Any:
    return x / (xp.mean(x * x, -1)[..., None] + 1e-6) ** 0.5


def _feed_forward(w: Any, block: str, x: Any) -> Any:
    up = x @ w[f"{block}.up"]
    return (up * (up > 0)) @ w[f"{block}.down"]


def _attention(w: Any, block: str, queries: Any, memory: Any, there: Any, xp: Any) -> Any:
    def split(x: Any) -> Any:
        return x.reshape(x.shape[0], x.shape[1], _HEADS, -1)

    q = split(queries @ w[f"{block}.q"])
    k, v = split(memory @ w[f"{block}.k"]), split(memory @ w[f"{block}.v"])
    score = xp.einsum("bqnd,bknd->bnqk", q, k) * q.shape[-1] ** -0.5
    score = score - 1e9 * (~there)
    weight = xp.exp(score - xp.amax(score, -1)[..., None])
    weight = weight / weight.sum(-1)[..., None]
    mixed = xp.einsum("bnqk,bknd->bqnd", weight, v)
    return mixed.reshape(queries.shape[0], queries.shape[1], -1) @ w[f"{block}.o"]


def train(
    recording: Recording, *, hidden: int = 32, ffn: int = 2048, window: int = 32, epochs: int = 10, seed: int = 0
) -> ExpertNetwork:
    """Trains on all rows of a recording. Raises ValidationError without PyTorch, or for a recording without prompts or rows."""
    try:
        import torch
    except ImportError:
        raise ValidationError("training needs PyTorch: pip install lynx_rt[network]", "network") from None
    if len(recording) == 0 or hidden % _HEADS:
        raise ValidationError(f"training needs rows, and a hidden size that {_HEADS} divides", "network")
    vocabulary = int(max(recording.token.max(initial=0), recording.prompt_token.max(initial=0))) + 1
    tokens = torch.from_numpy(windows(recording, window, vocabulary))
    used = torch.from_numpy(uses(recording))
    _, layers, experts = recording.scores.shape
    made = make_weights(vocabulary, window, layers, hidden, ffn, experts, seed)
    weights = {name: torch.from_numpy(value).requires_grad_() for name, value in made.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=3e-3)
    steps = epochs * -(-len(tokens) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    order = np.random.default_rng(seed)
    for epoch in range(epochs):
        total = 0.0
        for rows in np.array_split(order.permutation(len(tokens)), -(-len(tokens) // _BATCH)):
            logits = forward(weights, tokens[rows], torch)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, used[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"epoch {epoch + 1}: loss {total / len(tokens):.4f}", file=sys.stderr)
    return ExpertNetwork({name: value.detach().numpy() for name, value in weights.items()})


def recall(network: ExpertNetwork, recording: Recording) -> list[float]:
    """Returns, for each layer, the share of the used experts among as many best guesses as a token uses, 0..1."""
    k = recording.num_experts_per_tok
    best = np.argpartition(-network.scores(recording), k - 1, axis=-1)[..., :k]
    found = np.take_along_axis(uses(recording), best, -1).mean((0, 2))
    return [float(value) for value in found]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", metavar="TRAIN.npz")
    parser.add_argument("--out", type=Path, required=True, metavar="NETWORK.npz")
    parser.add_argument("--test", metavar="OTHER.npz", help="print what is found of this recording's experts")
    for name, value in {"hidden": 32, "ffn": 2048, "window": 32, "epochs": 10, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"(default: {value})")
    args = parser.parse_args(argv)
    try:
        recording = Recording.load(args.recording)
        sizes = {name: getattr(args, name) for name in ("hidden", "ffn", "window", "epochs", "seed")}
        network = train(recording, **sizes)
        network.save(args.out)
        print(f"{args.out}: {sum(value.size for value in network.weights.values())} weights, of {len(recording)} rows")
        if args.test:
            found = recall(network, Recording.load(args.test))
            print(f"{args.test}: finds {np.mean(found):.3f}; by layer {' '.join(f'{value:.3f}' for value in found)}")
    except (ValidationError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
