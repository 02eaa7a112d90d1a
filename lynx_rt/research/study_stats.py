"""Computes the numbers of a study: groups runs that differ in the seed alone, and compares them with topk item by item."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lynx_rt.research.study import MINORITY, REFERENCE, canonical
from lynx_rt.research.study_records import Record, key_of, scores_of, unique

# task -> item -> one value per run that had the item
Observations = Mapping[str, Mapping[int, Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with two standard errors; nan where there are too few items or seeds to tell."""

    value: float
    items_error: float  # from the spread over items
    seeds_error: float  # from the spread over seeds: other items in other batches


def mean_over_tasks(observations: Observations) -> tuple[float, float]:
    """Returns the mean over tasks of each task's mean, and its standard error over items.

    An item that several seeds drew is one item: its deviations are added up before they are squared (Liang and Zeger,
    Biometrika 1986), with the usual correction for the number of items.
    """
    means, variance = [], 0.0
    for items in observations.values():
        count = sum(len(values) for values in items.values())
        mean = sum(sum(values) for values in items.values()) / count
        means.append(mean)
        if len(items) < 2:
            variance = math.nan
            continue
        deviation = sum((sum(values) - len(values) * mean) ** 2 for values in items.values())
        variance += deviation / count**2 * len(items) / (len(items) - 1)
    return statistics.fmean(means), math.sqrt(variance) / len(means)


def estimate(per_run: Sequence[Observations]) -> Estimate:
    """Estimates the mean of all runs' observations; per_run has one entry per seed."""
    joined: dict[str, dict[int, list[float]]] = {}
    for observations in per_run:
        for task, items in observations.items():
            for number, values in items.items():
                joined.setdefault(task, {}).setdefault(number, []).extend(values)
    value, items_error = mean_over_tasks(joined)
    return Estimate(value, items_error, error_of_mean([mean_over_tasks(observations)[0] for observations in per_run]))


def error_of_mean(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Group:
    """The runs of one policy, batch size and composition over all seeds."""

    policy: str
    batch: int
    batches: str
    runs: tuple[Record, ...]
    _accuracy: dict[str | None, Estimate] = field(
        default_factory=dict, init=False, repr=False
    )  # by task; cached, because plots ask often

    def mean(self, name: str) -> float:
        """Returns the mean over seeds of one figure of the results; nan where it was not measured."""
        values = [run["results"][name] for run in self.runs if run["results"].get(name) is not None]
        return statistics.fmean(values) if values else math.nan

    def accuracy(self, task: str | None = None) -> Estimate:
        """Returns the accuracy of one task, or the mean over tasks, 0..1."""
        if task not in self._accuracy:
            self._accuracy[task] = estimate([_observed(run, task) for run in self.runs])
        return self._accuracy[task]

    def difference(self, base: Group, task: str | None = None) -> Estimate | None:
        """Returns accuracy - base.accuracy, from items that both had under the same seed; None where there are none."""
        others = {key_of(run).seed: run for run in base.runs}
        pairs = [(run, others[seed]) for run in self.runs if (seed := key_of(run).seed) in others]
        return estimate([_paired(run, other, task) for run, other in pairs]) if pairs else None

    def layer_ratio(self) -> list[float]:
        """Returns, per MoE layer, the experts read over those that the model's own routing would have read."""
        layers = list(zip(*[run["results"]["layers"] for run in self.runs], strict=True))
        return [sum(e["active"] for e in each) / max(sum(e["union_before"] for e in each), 1) for each in layers]

    @property
    def tasks(self) -> list[str]:
        return sorted({task for run in self.runs for task in run["results"]["items"]})


def _observed(run: Record, task: str | None) -> dict[str, dict[int, list[float]]]:
    observed = {}
    for name, entry in run["results"]["items"].items():
        if task in (None, name):
            observed[name] = {n: [score] for n, score in zip(entry["ids"], scores_of(entry), strict=True)}
    return observed


def _paired(run: Record, other: Record, task: str | None) -> dict[str, dict[int, list[float]]]:
    """Returns the differences of the items that both runs have."""
    base = _observed(other, task)
    return {
        name: {n: [v[0] - base[name][n][0]] for n, v in items.items() if n in base[name]}
        for name, items in _observed(run, task).items()
        if name in base
    }


@dataclass(frozen=True)
class Setup:
    """All runs with the same settings: one model on the same tasks."""

    settings: Mapping[str, Any]
    groups: tuple[Group, ...]

    @property
    def title(self) -> str:
        """Name of the model and of its weights' format."""
        quantization = self.settings["quantization"]
        title = str(self.settings["model"]) + ("" if quantization == "none" else f", {quantization}")
        if residents := self.settings.get("virtual_residents"):
            title += f", {residents:g} of each layer's experts resident, {self.settings['virtual_residency']}"
        return title

    def find(self, policy: str, batch: int, batches: str) -> Group | None:
        wanted = (policy, batch, batches)
        return next((g for g in self.groups if (g.policy, g.batch, g.batches) == wanted), None)

    def reference(self, group: Group) -> Group | None:
        """Returns topk in the same batches."""
        return self.find(canonical(REFERENCE), group.batch, group.batches)

    def at(self, batches: str, batch: int | None = None) -> list[Group]:
        return [g for g in self.groups if g.batches == batches and batch in (None, g.batch)]

    def batch_sizes(self, batches: str) -> list[int]:
        return sorted({group.batch for group in self.groups if group.batches == batches})

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(group.policy for group in self.groups))

    @property
    def names(self) -> dict[str, str]:
        """Returns a name per policy: as it was given, if that is unique (versions may differ in the defaults of "lynx")."""
        given = {group.policy: group.runs[0]["selection"] for group in self.groups}
        count = Counter(given.values())
        return {policy: name if count[name] == 1 else policy for policy, name in given.items()}

    @property
    def compositions(self) -> list[str]:
        return list(dict.fromkeys(group.batches for group in self.groups))


def describe_batches(batches: str) -> str:
    """Returns a value of --batches in words."""
    if batches.startswith(MINORITY):
        return f"{batches.removeprefix(MINORITY)} as a minority"
    return {"mixed": "mixed tasks", "single": "one task at a time"}[batches]


def setups(records: Iterable[Record]) -> list[Setup]:
    """Groups the runs by settings, and in each by what is varied, in the order of first appearance."""
    by_settings: dict[str, tuple[dict[str, Any], dict[tuple[str, int, str], list[Record]]]] = {}
    for record in unique(records):
        settings = record["settings"]
        _, groups = by_settings.setdefault(json.dumps(settings, sort_keys=True), (settings, {}))
        key = key_of(record)
        groups.setdefault((key.policy, key.batch, key.batches), []).append(record)
    return [
        Setup(settings, tuple(Group(*key, tuple(runs)) for key, runs in groups.items()))
        for settings, groups in by_settings.values()
    ]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the places of the points that no other point beats, from the smallest first coordinate up.

    A point beats another if it is less or equal in the first coordinate, more or equal in the second, and not the same.
    """
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        best = points[front[-1]] if front else None
        if best is None or points[place][1] > best[1] or points[place] == best:
            front.append(place)
    return front


def front_of(groups: Sequence[Group], cost: Callable[[Group], float]) -> list[int]:
    """Returns the places of the groups on the front of accuracy against a cost; negate a figure that is better when larger."""
    return pareto_front([(cost(group), group.accuracy().value) for group in groups])
