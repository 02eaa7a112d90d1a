"""Prompts with images for tiny random checkpoints, and what transformers makes of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from family_parity import Row, finish

from lynx_rt import _C

IMAGE = 95  # the token that stands for a row of an image


def with_images(row: Row, **vision: Any) -> Row:
    """The row with image_token_id in its config, and these keys of the tower."""

    def edit(config: dict[str, Any]) -> None:
        if row.edit:
            row.edit(config)
        config["image_token_id"] = IMAGE
        config["text_config"]["max_position_embeddings"] = 1024

    return replace(row, vision=(row.vision or {}) | vision, edit=edit)


@dataclass
class Prompt:
    """Token ids, and images as the engine takes them."""

    ids: list[int]
    images: list[dict[str, Any]]

    def then(self, tokens: list[int]) -> Prompt:
        return Prompt(self.ids + tokens, self.images)


def image(rng: np.random.Generator, grid: tuple[int, int], columns: int) -> dict[str, Any]:
    patches = rng.standard_normal((grid[0] * grid[1], columns)).astype(np.float32)
    return {
        "grid_height": grid[0],
        "grid_width": grid[1],
        "patches": patches,
        "digest": hashlib.sha256(patches).digest(),
    }


def prompt(seed: int, parts: list[int | tuple[int, int]], vision: dict[str, Any]) -> Prompt:
    """Parts: a number is so many tokens of text, a pair an image of this grid of patches."""
    rng = np.random.default_rng(seed)
    columns = vision.get("in_channels", 3) * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    ids, images = [], []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(0, 90, part).tolist()
        else:
            images.append(image(rng, part, columns) | {"position": len(ids)})
            ids += [IMAGE] * (part[0] * part[1] // vision["spatial_merge_size"] ** 2)
    return Prompt(ids, images)


def reference_logits(model: torch.nn.Module, of: Prompt) -> np.ndarray:
    ids = torch.tensor([of.ids])
    more: dict[str, Any] = {}
    if of.images:
        end = max(i["position"] + len(i["patches"]) for i in of.images)
        more["pixel_values"] = torch.from_numpy(np.concatenate([i["patches"] for i in of.images]))
        more["image_grid_thw"] = torch.tensor([[1, i["grid_height"], i["grid_width"]] for i in of.images])
        more["mm_token_type_ids"] = ((ids == IMAGE) & (torch.arange(len(of.ids)) < end)).int()
    model.model.rope_deltas = None
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **more).logits[0].float().numpy()


def greedy(
    e: _C.Engine, prompts: list[Prompt], count: int = 32, exact: tuple[int, ...] = ()
) -> list[list[tuple[int, float]]]:
    """Generates `count` tokens for each prompt, as one batch: [(token, logprob), ...] per prompt."""
    ids = []
    for i, p in enumerate(prompts):
        params = _C.SamplingParams()
        params.temperature, params.max_tokens, params.ignore_eos, params.logprobs = 0.0, count, True, 0
        params.exact = i in exact
        params.bad_words = [[IMAGE]]  # transformers counts those that are generated, too
        ids.append(e.add_request(p.ids, params, None, p.images))
    return finish(e, ids)
