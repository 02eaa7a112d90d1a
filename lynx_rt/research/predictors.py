"""Guesses of the experts that a step will use, made on recorded routing, for `lynx_rt.research.tier_simulation`.

| name | knows | known | source |
|---|---|---|---|
| popularity | how often each expert was used in the training half | always | |
| token_table | the experts that the row's token had in the training half | when the step begins | |
| network | the request's tokens, by a network that was trained on another recording | when the step begins | arXiv 2410.17954 |
| prefill | the experts of the request's own prompt, then as ewma | when the step begins | arXiv 2510.05497 |
| ewma | the request's own experts, a use counting `decay` a token later | when the step begins | |
| transition | the experts of the layer before | a layer ahead | |
| linear | the router logits of the layer before, by ridge regression | a layer ahead | |
| next_router | the next router's logits on this layer's hidden state | a layer ahead | arXiv 2312.17238 |
| external | scores of a .npy file [N, L, E] for the recording's rows | when the step begins | |

Keys: n = experts per row (default: as many as a token uses); d = how many layers ahead reads begin (default 1; more only where the guess
is known when the step begins); ewma: decay (0.9); prefill: decay (1: the prompt alone); network: file, of
lynx_rt.research.expert_network; external: file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lynx_rt.errors import ValidationError
from lynx_rt.research.recording import Recording, uses

Scores = NDArray[np.float32]
_AHEAD = ("popularity", "token_table", "ewma", "prefill", "network", "external")  # known when a step begins
NAMES = ("none", *_AHEAD, "transition", "linear", "next_router")
_PRIOR = 0.5  # weight of popularity beside the counts of a token


@dataclass(frozen=True)
class Predictor:
    """A parsed text, as "token_table:n=6,d=2"."""

    text: str
    name: str
    n: int | None = None
    d: int = 1
    decay: float | None = None
    file: str = ""
    known_at_start: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known_at_start", self.name in _AHEAD)


def parse_predictor(text: str) -> Predictor:
    """Parses "none", "token_table", "ewma:n=6,decay=0.8". Raises ValidationError (field prefetch)."""
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise ValidationError(f"prefetch: expected one of {', '.join(NAMES)}, got {name!r}", "prefetch")
    values: dict[str, int | float | str] = {}
    for piece in filter(None, rest.split(",")):
        key, _, value = piece.partition("=")
        try:
            if key in ("n", "d") and name != "none" and int(value) >= 1:
                values[key] = int(value)
            elif key == "decay" and name in ("ewma", "prefill") and 0 < float(value) < 1:
                values[key] = float(value)
            elif key == "file" and name in ("external", "network") and value:
                values[key] = value
            else:
                raise ValueError
        except ValueError:
            raise ValidationError(
                f"prefetch: {text}: unexpected {piece!r}; see lynx_rt.research.predictors", "prefetch"
            ) from None
    found = Predictor(text, name, **values)  # type: ignore[arg-type]
    if name in ("external", "network") and not found.file:
        raise ValidationError(
            f"prefetch: {name} needs file={'SCORES.npy' if name == 'external' else 'NETWORK.npz'}", "prefetch"
        )
    if found.d > 1 and not found.known_at_start:
        raise ValidationError(f"prefetch: {text}: {name} knows one layer ahead: d must be 1", "prefetch")
    return found


def predict(recording: Recording, predictor: Predictor, train: NDArray[np.bool_]) -> Scores | None:
    """Returns scores [N, L, E] of all rows, -inf = not guessed, or None for "none".

    train: [N] rows that the predictor may learn from. Raises ValidationError where the recording lacks what the predictor needs.
    """
    if predictor.name == "none":
        return None
    if predictor.name == "external":
        return _external(recording, predictor.file)
    if predictor.name == "next_router":
        return _next_router(recording)
    if predictor.name == "network":
        from lynx_rt.research.expert_network import ExpertNetwork

        return ExpertNetwork.load(predictor.file).scores(recording)
    functions: dict[str, Callable[[], Scores]] = {
        "popularity": lambda: np.broadcast_to(uses(recording)[train].mean(0), recording.scores.shape),
        "token_table": lambda: _token_table(recording, train),
        "ewma": lambda: _ewma(recording, _popular(recording, train), predictor.decay or 0.9),
        "prefill": lambda: _ewma(
            recording, prompt_uses(recording) + 1e-3 * _popular(recording, train), predictor.decay or 1.0
        ),
        "transition": lambda: _transition(recording, train),
        "linear": lambda: _linear(recording, train),
    }
    if not train.any():
        raise ValidationError(f"prefetch: {predictor.name} has nothing to learn from; lower --measured", "prefetch")
    return np.ascontiguousarray(functions[predictor.name](), dtype=np.float32)


def _external(recording: Recording, file: str) -> Scores:
    try:
        scores = np.load(Path(file), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValidationError(f"prefetch: {file}: {error}", "prefetch") from None
    if scores.shape != recording.scores.shape or scores.dtype.kind != "f":
        raise ValidationError(
            f"prefetch: {file}: expected floats {recording.scores.shape}, got {scores.dtype} {scores.shape}", "prefetch"
        )
    return np.ascontiguousarray(scores, dtype=np.float32)


def _next_router(recording: Recording) -> Scores:
    if recording.next_scores.shape[1] != len(recording.layers) - 1:
        raise ValidationError(
            "prefetch: next_router needs what the next layer's router says of this layer's hidden states, which the recording lacks; "
            "record it again on the CPU with this version",
            "prefetch",
        )
    out = np.full(recording.scores.shape, -np.inf, np.float32)
    out[:, 1:] = recording.next_scores
    if recording.choice_bias.size:
        out[:, 1:] += recording.choice_bias[1:]
    return out


def _token_table(recording: Recording, train: NDArray[np.bool_]) -> Scores:
    if len(recording.token) != len(recording):
        raise ValidationError(
            "prefetch: token_table needs the rows' tokens, which the recording lacks; record it again with this version",
            "prefetch",
        )
    used = uses(recording)
    tokens, row_token = np.unique(recording.token, return_inverse=True)
    table = np.tile(_PRIOR * used[train].mean(0), (len(tokens), 1, 1))
    np.add.at(table, row_token[train], used[train])
    return table[row_token]


def prompt_uses(recording: Recording) -> Scores:
    """Returns [R, L, E]: the share of the tokens of each request's prompt that use each expert, in order of request."""
    requests = np.unique(recording.request)
    known = np.isin(requests, recording.prompt_request).all()
    if not known or len(recording.prompt_experts) != len(recording.prompt_request):
        raise ValidationError(
            "prefill needs the experts of prompts, which the recording lacks; record it again with this version",
            "prefetch",
        )
    mine = np.isin(recording.prompt_request, requests)
    number = np.searchsorted(requests, recording.prompt_request[mine])
    experts = recording.prompt_experts[mine].astype(np.int64)  # [P, L, k]
    out = np.zeros((len(requests), *recording.scores.shape[1:]), np.float32)
    row, layer, slot = np.nonzero(experts >= 0)
    np.add.at(out, (number[row], layer, experts[row, layer, slot]), 1)
    out /= np.bincount(number, minlength=len(requests))[:, None, None]
    return out


def _popular(recording: Recording, train: NDArray[np.bool_]) -> Scores:
    """Returns [R, L, E]: for every request, what a sum without any use of its own begins with."""
    mean = 0.1 * uses(recording)[train].mean(0)
    return np.broadcast_to(mean, (len(np.unique(recording.request)), *mean.shape)).astype(np.float32)


def _ewma(recording: Recording, state: Scores, decay: float) -> Scores:
    """state: [R, L, E] what is guessed for the first row of each request."""
    used = uses(recording)
    out = np.empty_like(used)
    _, number = np.unique(recording.request, return_inverse=True)
    # A row sees what its request's earlier rows used: rows of one step are of different requests.
    for begin, end in zip(recording.step_offsets[:-1], recording.step_offsets[1:], strict=True):
        requests = number[begin:end]
        out[begin:end] = state[requests]
        state[requests] = decay * state[requests] + (1 - decay) * used[begin:end]
    return out


def _transition(recording: Recording, train: NDArray[np.bool_]) -> Scores:
    used = uses(recording)
    out = np.full(used.shape, -np.inf, np.float32)
    for layer in range(1, used.shape[1]):
        before, here = used[train, layer - 1], used[train, layer]
        counts = before.T @ here / np.maximum(before.sum(0)[:, None], 1)
        out[:, layer] = used[:, layer - 1] @ counts
    return out


def _linear(recording: Recording, train: NDArray[np.bool_], ridge: float = 1.0) -> Scores:
    logits = recording.scores.astype(np.float64)
    out = np.full(logits.shape, -np.inf, np.float32)
    for layer in range(1, logits.shape[1]):
        given = np.concatenate([logits[:, layer - 1], np.ones((len(logits), 1))], axis=1)
        learned = given[train]
        square = learned.T @ learned + ridge * np.eye(learned.shape[1])
        out[:, layer] = given @ np.linalg.solve(square, learned.T @ logits[train, layer])
    if recording.choice_bias.size:
        out[:, 1:] += recording.choice_bias[1:]
    return out
