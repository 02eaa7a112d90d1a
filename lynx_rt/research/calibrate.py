"""Makes tables that expert-selection policies read, from a model and some text: similarities for `sere`, stand-ins for `alias`.

Every expert of every MoE layer runs on every calibration token's layer input, and the outputs (without gate weight) are compared
pair by pair. The layer inputs are those of the model's own routing. This costs E / k times the expert work of a prefill, on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lynx_rt.engine.progress import wants_bar
from lynx_rt.errors import ValidationError
from lynx_rt.research.tensor_file import write_tensors

if TYPE_CHECKING:
    from lynx_rt.engine.engine import Engine

Metric = Literal["frobenius", "cosine"]


@dataclass(slots=True, eq=False)
class Calibration:
    """L MoE layers, E experts."""

    metric: str
    num_tokens: int
    similarity: NDArray[np.float32]  # [L, E, E] symmetric, 0..1, 1 on the diagonal
    usage: NDArray[np.int64]  # [L, E] tokens that the model's own routing sends to the expert

    def alias(self, num_experts: int) -> NDArray[np.int32]:
        """Returns int32 [L, E]: the expert that stands in for each when `num_experts` per layer are left.

        Merges greedily. Each merge takes the two most similar experts that are left (ties: the lowest numbers). The less used
        one, with all that it stood in for, is replaced by the other (ties: the lower number stays), which takes over its use.
        This is the run-time half of MC-SMoE (arXiv 2310.01334): groups by similarity and use. The paper also averages the weights
        of a group, by use, and compresses what is left; here the expert that stays keeps its own weights.
        """
        layers, experts = self.usage.shape
        if not 1 <= num_experts <= experts:
            raise ValidationError(f"alias: expected 1..{experts} experts per layer, got {num_experts}", "alias")
        table = np.tile(np.arange(experts, dtype=np.int32), (layers, 1))
        for layer in range(layers):
            usage = self.usage[layer].copy()
            pairs = np.where(np.triu(np.ones((experts, experts), bool), 1), self.similarity[layer], -np.inf)
            for _ in range(experts - num_experts):
                low, high = divmod(int(np.argmax(pairs)), experts)
                stays, goes = (low, high) if usage[low] >= usage[high] else (high, low)
                usage[stays] += usage[goes]
                table[layer][table[layer] == goes] = stays
                pairs[goes, :] = pairs[:, goes] = -np.inf
        return table

    def save(self, path: str | os.PathLike[str], *, num_experts: int | None = None) -> None:
        """Writes a safetensors file with "similarity", and with "alias" for num_experts experts left if that is given."""
        tensors: dict[str, NDArray[np.generic]] = {"similarity": self.similarity}
        if num_experts is not None:
            tensors["alias"] = self.alias(num_experts)
        write_tensors(path, tensors, {"metric": self.metric, "tokens": str(self.num_tokens)})


def calibrate(
    engine: Engine, sequences: Sequence[Sequence[int]], *, metric: Metric = "frobenius", use_tqdm: bool | None = None
) -> Calibration:
    """Compares the experts on token sequences, each computed by itself.

    metric: "frobenius" = 1 - ||Y_i - Y_j|| / (the largest of the layer), Y being the outputs for all tokens, so that the two most
    different experts of a layer have 0 (SERE, arXiv 2602.07616); "cosine" = mean over tokens of the cosine c, as (c + 1) / 2.
    Raises ValidationError if there is no token, UnsupportedModelError for a device other than the CPU and for a model without
    experts.
    """
    if not any(sequences):
        raise ValidationError("expected at least one token to calibrate on, got none", "sequences")
    sums, usage, tokens = 0.0, 0, 0
    bar = None
    if wants_bar(use_tqdm, len(sequences)):
        from tqdm.auto import tqdm

        bar = tqdm(total=sum(map(len, sequences)), desc="Calibrating", unit="tok", dynamic_ncols=True)
    try:
        for ids in filter(None, sequences):
            compared = engine._core.compare_experts(list(ids), metric)
            sums, usage, tokens = sums + compared["sums"], usage + compared["usage"], tokens + compared["num_tokens"]
            if bar is not None:
                bar.update(len(ids))
    finally:
        if bar is not None:
            bar.close()
    return Calibration(metric, tokens, _similarity(np.asarray(sums), metric, tokens), np.asarray(usage))


def text_sequences(engine: Engine, text: str, length: int, limit: int | None = None) -> list[list[int]]:
    """Cuts the tokens of a text into pieces of `length`, and returns at most `limit` of them, spread evenly. A shorter rest is dropped
    unless it is all there is."""
    ids = engine.encode(text)
    pieces = [ids[begin : begin + length] for begin in range(0, len(ids), length)]
    if len(pieces) > 1 and len(pieces[-1]) < length:
        pieces.pop()
    if limit is None or limit >= len(pieces):
        return pieces
    return [pieces[index * len(pieces) // limit] for index in range(limit)]


def _similarity(sums: NDArray[np.float64], metric: str, num_tokens: int) -> NDArray[np.float32]:
    if metric == "cosine":
        similarity = (sums / num_tokens + 1) / 2
    else:
        distance = np.sqrt(sums)
        largest = distance.max(axis=(1, 2), keepdims=True)
        similarity = 1 - distance / np.where(largest > 0, largest, 1)
    experts = similarity.shape[-1]
    similarity[:, range(experts), range(experts)] = 1
    return similarity.astype(np.float32)
