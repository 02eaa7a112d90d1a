"""Recorded routing: the router logits and experts of the decode-only steps of an engine with record_router_logits=True.

    with Engine(model, max_num_seqs=16, enable_mixed_chunk=False, record_router_logits=True) as engine:
        engine.generate(prompts)
        recording = take_recording(engine)
    recording.save("routing.npz")

lynx_rt.research.simulate runs policies on it; Recording.save_routed_experts() writes what the policy `replay` reads.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lynx_rt.errors import ValidationError
from lynx_rt.research.tensor_file import write_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lynx_rt.engine.engine import Engine
    from lynx_rt.engine.outputs import RequestOutput

_ARRAYS = {  # name -> dtype, dimensions
    "layers": (np.int32, 1),
    "scores": (np.float32, 3),
    "routed_experts": (np.int16, 3),
    "step": (np.int64, 1),
    "request": (np.uint64, 1),
    "position": (np.int32, 1),
    "exact": (np.uint8, 1),
    "choice_bias": (np.float32, 2),
    "token": (np.int32, 1),
    "next_scores": (np.float32, 3),
    "prompt_request": (np.uint64, 1),
    "prompt_token": (np.int32, 1),
    "prompt_experts": (np.int16, 3),
}
_OF_PROMPTS = ("prompt_request", "prompt_token", "prompt_experts")
_ADDED = ("choice_bias", "token", "next_scores", *_OF_PROMPTS)  # which files of older versions lack
_FACTS = ("model", "selection", "num_model_layers", "num_experts_per_tok", "norm_topk_prob", "router")
_PLAIN_ROUTER = {"kind": "softmax", "num_groups": 1, "top_groups": 1, "group_top2": False}


@dataclass(slots=True, eq=False)
class Recording:
    """N rows of decode-only steps, in order of step; L MoE layers, E experts, k per token."""

    model: str  # path
    selection: str  # the policy under which the rows were decoded
    num_model_layers: int  # dense layers included
    num_experts_per_tok: int
    norm_topk_prob: bool
    layers: NDArray[np.int32]  # [L] the model's numbers of its MoE layers
    scores: NDArray[np.float32]  # [N, L, E] router logits
    routed_experts: NDArray[np.int16]  # [N, L, k] after selection, -1 = none
    step: NDArray[np.int64]  # [N] rising
    request: NDArray[np.uint64]  # [N] number of the request
    position: NDArray[np.int32]  # [N] in its sequence
    exact: NDArray[np.uint8]  # [N] 1 = expert_selection="exact"
    # The rule by which logits rank experts: members of RouterRule (csrc/routing/rule.h), and the bias of each layer.
    router: dict[str, Any] = field(default_factory=_PLAIN_ROUTER.copy)
    choice_bias: NDArray[np.float32] = None  # type: ignore[assignment]  # [L, E], or [L, 0] = none
    token: NDArray[np.int32] = None  # type: ignore[assignment]  # [N] id of the token at `position`, or [0] = not recorded
    # [N, L - 1, E]: what the routers from the second MoE layer on say of the hidden state after the attention of the MoE layer
    # before; or [N, 0, E] = not recorded.
    next_scores: NDArray[np.float32] = None  # type: ignore[assignment]
    # The P tokens of all prompts, one request after the other, in order of position; or P = 0: not recorded. Experts: add_prompts().
    prompt_request: NDArray[np.uint64] = None  # type: ignore[assignment]  # [P]
    prompt_token: NDArray[np.int32] = None  # type: ignore[assignment]  # [P]
    prompt_experts: NDArray[np.int16] = None  # type: ignore[assignment]  # [P, L, k], -1 = none; or [0, L, k] = not recorded

    def __post_init__(self) -> None:
        if self.choice_bias is None:
            self.choice_bias = np.zeros((len(self.layers), 0), np.float32)
        if self.token is None:
            self.token = np.zeros(0, np.int32)
        if self.next_scores is None:
            self.next_scores = np.zeros((len(self.step), 0, *self.scores.shape[2:]), np.float32)
        if self.prompt_request is None:
            self.prompt_request, self.prompt_token = np.zeros(0, np.uint64), np.zeros(0, np.int32)
        if self.prompt_experts is None:
            self.prompt_experts = np.zeros((0, len(self.layers), self.num_experts_per_tok), np.int16)

    def __len__(self) -> int:
        return len(self.step)

    @property
    def step_offsets(self) -> NDArray[np.int64]:
        """[steps + 1]: step s has rows offsets[s] .. offsets[s + 1] - 1."""
        return offsets_of(self.step)

    def native(self) -> dict[str, Any]:
        """Returns the recording as the compiled module takes it."""
        return {name: getattr(self, name) for name in (*_ARRAYS, *_FACTS)}

    def add_prompts(self, outputs: Sequence[RequestOutput]) -> None:
        """Adds what was recorded of the prompts. outputs: all that the engine has generated since it was made, one completion each, in the
        order in which they were added. Raises ValidationError for an engine without enable_return_routed_experts."""
        tokens = [np.array(output.prompt_token_ids, np.int32) for output in outputs]
        experts = []
        for output, prompt in zip(outputs, tokens, strict=True):
            routed = output.outputs[0].routed_experts
            if routed is None:
                raise ValidationError("prompts need enable_return_routed_experts=True", "enable_return_routed_experts")
            experts.append(routed[: len(prompt)])
        if not outputs:
            return
        numbers = np.arange(1, len(outputs) + 1, dtype=np.uint64)  # as the engine counts its requests
        self.prompt_request = np.repeat(numbers, [len(prompt) for prompt in tokens])
        self.prompt_token, self.prompt_experts = np.concatenate(tokens), np.concatenate(experts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one .npz file, under exactly this name."""
        facts = np.array(json.dumps({name: getattr(self, name) for name in _FACTS}))
        with Path(path).open("wb") as file:
            np.savez(file, facts=facts, **{name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Reads a file of save(). Raises OSError, and ValidationError for a file that is no recording."""
        try:
            with np.load(path, allow_pickle=False) as file:
                facts = json.loads(str(file["facts"]))
                facts.setdefault("router", _PLAIN_ROUTER.copy())  # files from before routers other than softmax
                arrays = {name: file[name] for name in _ARRAYS if name in file.files or name not in _ADDED}
                recording = cls(**{name: facts[name] for name in _FACTS}, **arrays)
        except OSError:
            raise
        except Exception as error:  # numpy, zipfile and json raise many types for a damaged file
            raise ValidationError(f"{os.fspath(path)} is no recording: {error!r}", "recording") from None
        recording._check(os.fspath(path))
        return recording

    def save_routed_experts(self, path: str | os.PathLike[str], batch: int) -> int:
        """Writes the effective experts of the steps with `batch` rows, for the policy `replay` at that batch size. Returns the
        number of rows written. Raises ValidationError where no step has `batch` rows."""
        offsets = self.step_offsets
        full = np.repeat(np.diff(offsets) == batch, np.diff(offsets))
        if not full.any():
            raise ValidationError(f"no decode-only step has {batch} rows", "batch")
        metadata = {"model": self.model, "selection": self.selection, "batch": str(batch)}
        write_tensors(path, {"routed_experts": self.routed_experts[full].astype(np.int32)}, metadata)
        return int(full.sum())

    def _check(self, path: str) -> None:
        kinds = {name: type(value) for name, value in _PLAIN_ROUTER.items()}
        if not isinstance(self.router, dict) or {name: type(value) for name, value in self.router.items()} != kinds:
            raise ValidationError(f"{path}: router: unexpected {self.router!r}", "recording")
        rows, layers = len(np.atleast_1d(self.scores)), self.layers.size
        for name, (dtype, dimensions) in _ARRAYS.items():
            array = getattr(self, name)
            lengths = (layers,) if name == "layers" else (rows, layers, *array.shape[2:3])[:dimensions]
            if name in _OF_PROMPTS:
                lengths = (len(np.atleast_1d(self.prompt_request)), layers, self.num_experts_per_tok)[:dimensions]
            if name == "prompt_experts" and array.size == 0:
                lengths = (0, layers, self.num_experts_per_tok)
            if name == "choice_bias":
                lengths = (layers, self.scores.shape[2] if array.size else 0)
            if name == "next_scores":
                lengths = (rows, layers - 1, *self.scores.shape[2:3])
            if name in ("token", "next_scores") and array.size == 0:
                lengths = array.shape
            if array.dtype != dtype or array.ndim != dimensions or array.shape != lengths:
                raise ValidationError(f"{path}: {name}: unexpected {array.dtype} {array.shape}", "recording")


def take_recording(engine: Engine) -> Recording:
    """Returns what the engine recorded since the last call, labelled with the policy that is set now. Raises ValidationError where
    the engine was made without record_router_logits."""
    recorded = engine._core.take_router_logits()
    return Recording(model=str(engine._path), selection=engine.expert_selection, **recorded)


def own_experts(recording: Recording) -> NDArray[np.int16]:
    """Returns [N, L, k]: the experts that the model's own routing chooses for the recording's rows."""
    from lynx_rt import _C

    order = np.arange(len(recording), dtype=np.int64)
    routed: NDArray[np.int16] = _C.simulate(recording.native(), "topk", order, recording.step_offsets)["routed_experts"]
    return routed


def uses(recording: Recording) -> NDArray[np.float32]:
    """Returns [N, L, E]: 1 where the model's own routing of a row takes the expert."""
    out = np.zeros(recording.scores.shape, np.float32)
    np.put_along_axis(out, own_experts(recording).astype(np.int64), 1, -1)
    return out


def offsets_of(step: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns [steps + 1]: the places in `step` where runs of equal values begin, and its length."""
    starts = np.flatnonzero(np.diff(step, prepend=step[:1] - 1))
    return np.append(starts, len(step)).astype(np.int64)
