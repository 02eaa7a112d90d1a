"""Which of several engines gets a request: policies that know nothing of the framework around them.

| policy | the engine that goes first |
|---|---|
| pack | the one with the most requests that has fewer than `fill`: a batch-aware selection gains by full batches |
| prefix | the one that had the longest part of this prompt before: its prefix cache has the pages |
| expert | the one whose running prompts are most like this one: such prompts use the same experts |
| spread | the one with the fewest requests |

prefix and expert load no engine beyond 1.25 times the mean.

Source of `expert`: ELDR, arXiv 2607.00466, which compares the experts of the prompts' rows. Those are known only once an engine has
computed the prompt, so words stand for them here, as tokens do in csrc/engine/admission.h. Keys of prompts tell about the text: they are
for the servers of one cluster only.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lynx_rt.errors import ValidationError

POLICIES = ("pack", "prefix", "expert", "spread")
MOST_LOAD = 1.25  # of the mean, beyond which affinity does not add to an engine
_BLOCK = 64  # characters of a prompt that are found or not found together
_MAX_BLOCKS = 256  # of a prompt that are looked at
_KNOWN_BLOCKS = 65536  # of each engine
_BUCKETS = 256
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class PromptKey:
    """What placement knows of a prompt. prefixes: hashes of its first block, its first two blocks, ...; words: counts by bucket."""

    prefixes: tuple[int, ...] = ()
    words: Mapping[int, int] = field(default_factory=dict)


def prompt_key(body: Mapping[str, Any]) -> PromptKey:
    """Returns the key of a request to any of the server's routes that generate text."""
    text = _text(body)[: _BLOCK * _MAX_BLOCKS]
    prefixes, known = [], 0
    for begin in range(0, len(text) - _BLOCK + 1, _BLOCK):
        known = zlib.crc32(text[begin : begin + _BLOCK].encode("utf-8", "replace"), known)
        prefixes.append(known)
    words = Counter(zlib.crc32(word.encode("utf-8", "replace")) % _BUCKETS for word in _WORD.findall(text))
    return PromptKey(tuple(prefixes), dict(words))


def _text(body: Mapping[str, Any]) -> str:
    parts = [str(body.get("cache_salt") or "")]
    for name in ("system", "instructions", "messages", "input", "prompt"):
        parts.append(_flat(body.get(name)))
    return "\n".join(part for part in parts if part)


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return " ".join(_flat(value.get(name)) for name in ("role", "content", "text") if value.get(name))
    if isinstance(value, Sequence):
        return " ".join(str(item) if isinstance(item, int) else _flat(item) for item in value)
    return ""


@dataclass
class _Engine:
    requests: dict[Hashable, PromptKey] = field(default_factory=dict)  # in flight
    words: Counter[int] = field(default_factory=Counter)  # of their prompts
    prefixes: OrderedDict[int, None] = field(default_factory=OrderedDict)  # the least recent first


class Placement:
    """Keeps what each engine has and had. Not thread-safe."""

    def __init__(self, policy: str, fill: int) -> None:
        """fill: requests that run at once in an engine. Raises ValidationError (fields policy, fill)."""
        if policy not in POLICIES:
            raise ValidationError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}", "policy")
        if fill < 1:
            raise ValidationError(f"fill must be at least 1, got {fill}", "fill")
        self._policy, self._fill = policy, fill
        self._engines: dict[Hashable, _Engine] = {}
        self._seen: Counter[int] = Counter()  # words of all prompts
        self._num_seen = 0

    def load(self, engine: Hashable) -> int:
        """Returns the requests in flight."""
        found = self._engines.get(engine)
        return len(found.requests) if found else 0

    def keep(self, engines: Sequence[Hashable]) -> None:
        """Forgets engines that are not among these."""
        self._engines = {name: self._engines[name] for name in engines if name in self._engines}

    def ranked(self, engines: Sequence[Hashable], key: PromptKey) -> list[Hashable]:
        """Returns the engines, the one that should get the request first. Ties go to the earlier one."""
        load = {name: self.load(name) for name in engines}
        fewest = sorted(engines, key=load.__getitem__)
        if self._policy == "spread" or not engines:
            return fewest
        if self._policy == "pack":
            return sorted(
                fewest, key=lambda name: (load[name] >= self._fill, -load[name] if load[name] < self._fill else 0)
            )
        most = max(1.0, MOST_LOAD * (sum(load.values()) + 1) / len(engines))
        score = self._prefix_score if self._policy == "prefix" else self._word_score
        scores = {name: score(self._engines.get(name, _Engine()), key) for name in engines if load[name] + 1 <= most}
        best = sorted((name for name in fewest if scores.get(name, 0) > 0), key=lambda name: -scores[name])
        return best + [name for name in fewest if name not in best]

    def add(self, engine: Hashable, request: Hashable, key: PromptKey) -> None:
        """Notes that an engine has got a request."""
        state = self._engines.setdefault(engine, _Engine())
        state.requests[request] = key
        state.words.update(key.words)
        self._seen.update(key.words)
        self._num_seen += 1
        for prefix in key.prefixes:
            state.prefixes[prefix] = None
            state.prefixes.move_to_end(prefix)
        while len(state.prefixes) > _KNOWN_BLOCKS:
            state.prefixes.popitem(last=False)

    def remove(self, engine: Hashable, request: Hashable) -> None:
        """Notes that a request has ended. Does nothing where it is unknown."""
        state = self._engines.get(engine)
        if state is not None and (key := state.requests.pop(request, None)) is not None:
            state.words.subtract(key.words)

    def _prefix_score(self, state: _Engine, key: PromptKey) -> float:
        found = 0
        while found < len(key.prefixes) and key.prefixes[found] in state.prefixes:
            found += 1
        return found if found >= 0.1 * len(key.prefixes) else 0

    def _word_score(self, state: _Engine, key: PromptKey) -> float:
        """How much more of the prompt's words than any prompt has, the running prompts have."""
        count, seen = len(state.requests), max(self._num_seen, 1)
        return sum(n * (state.words[word] - count * self._seen[word] / seen) for word, n in key.words.items())
