"""Writes table.md of a study: accuracy, experts, bytes and time side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lynx_rt.research.study import MINORITY
from lynx_rt.research.study_records import Record
from lynx_rt.research.study_stats import Estimate, Group, Setup, describe_batches, front_of, setups

_HEADER = [
    "policy", "accuracy %", "difference", "over items", "over seeds", "perplexity", "experts before", "after", "saved %", "mass %",
    "remapped %", "guard %", "MB/step", "of experts", "ms/step", "median", "tok/s", "rows/step", "decode-only %",
]  # fmt: skip
_MISSES = ["misses before", "misses", "x fewer", "changed rows %"]
_PICTURES = ["TTFT ms", "tok/s of all steps", "tower %", "decode-only steps %"]
_OTHERS = "the others"  # name of a column
_LEGEND = """\
- accuracy: exact match, or the metric that a task names; mean over tasks; difference: to topk on the same items under the same seeds, in points, with its standard
  error over items and over seeds. **bold**: on the Pareto front of accuracy against experts.
- perplexity: of a token of the expected answers, which enter token by token after their prompts, under the policy.
- experts: per layer and decode-only step, before and after selection; mass: the rows' own gate mass that is kept; remapped: (row, slot)
  pairs that got another expert; guard: steps that fell back to the model's own routing.
- MB: 10^6 bytes of weights and KV per decode-only step, and those of experts alone; ms: mean and median decode-only step; tok/s: of
  decode-only steps; decode-only: generated tokens that came from such steps, where a policy acts.
- with a cache: misses per layer and decode-only step, of the model's own routing on the cache as the policy leaves it, and of what was
  read; x fewer: than topk on a cache of its own; changed rows: (row, layer) pairs that did not get their own choice.
- with pictures: TTFT from the first step that worked on a request to its first token, mean; tower, decode-only steps: shares of the
  time of all steps.
"""


def write_report(records: Sequence[Record], folder: Path, *, plots: bool = True) -> list[Path]:
    """Writes table.md and the plots into a folder, and returns the files. Plots need matplotlib."""
    if plots:  # raises before anything is written if matplotlib is missing
        from lynx_rt.research.study_plots import draw

    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "table.md"
    table.write_text(format_table_md(records), encoding="utf-8")
    return [table, *(draw(setups(records), folder) if plots else [])]


def format_table_md(records: Sequence[Record]) -> str:
    lines = ["# Expert selection", "", _LEGEND]
    for setup in setups(records):
        lines += _setup_lines(setup)
    lines += ["## Commands", ""]
    lines += [f"- `{command}`" for command in dict.fromkeys(record["command"] for record in records)]
    return "\n".join(lines) + "\n"


def _setup_lines(setup: Setup) -> list[str]:
    settings, first = setup.settings, setup.groups[0].runs[0]
    lines = [f"## {setup.title}", ""]
    devices = dict.fromkeys(run["device"] for group in setup.groups for run in group.runs)
    lines += [
        f"{first['dtype']} on {'; '.join(devices)}; {first['results']['num_experts']} experts, "
        f"{first['results']['num_experts_per_tok']} per token; {settings['items']} items per seed of {len(settings['tasks'])} tasks "
        f"({settings['tasks_digest']}), up to {settings['max_tokens']} tokens; lynx_rt {first['versions']['lynx_rt']}",
        "",
    ]
    lines += ["| policy | full form |", "| --- | --- |"]
    lines += [f"| `{name}` | `{policy}` |" for policy, name in setup.names.items()] + [""]
    for batches in setup.compositions:
        lines += _summary_lines(setup, batches)
        for batch in setup.batch_sizes(batches):
            lines += _batch_lines(setup, setup.at(batches, batch), f"{describe_batches(batches)}, batch {batch}")
    return lines


def _summary_lines(setup: Setup, batches: str) -> list[str]:
    """Returns lines with loss and saving of every policy at every batch size."""
    sizes = setup.batch_sizes(batches)
    rows = []
    for policy, name in setup.names.items():
        cells = []
        for batch in sizes:
            group = setup.find(policy, batch, batches)
            cells.append("" if group is None else _summary_cell(setup, group))
        rows.append([f"`{name}`", *cells])
    heading = [
        f"### {describe_batches(batches)}",
        "",
        "Points lost or won (error over items) / experts saved, by batch size:",
        "",
    ]
    return [*heading, *_markdown(["policy", *map(str, sizes)], rows), ""]


def _summary_cell(setup: Setup, group: Group) -> str:
    reference = setup.reference(group)
    if reference is group:
        return f"{100 * group.accuracy().value:.1f} % right"
    change = None if reference is None else group.difference(reference)
    saved = f"{_saved(group):.0f} %"
    if change is None:
        return saved
    return f"{100 * change.value:+.2f} ({_number(100 * change.items_error, 2) or '?'}) / {saved}"


def _saved(group: Group) -> float:
    before = group.mean("union_before")
    return 100 * (1 - group.mean("active") / before) if before else 0.0


def _batch_lines(setup: Setup, groups: list[Group], heading: str) -> list[str]:
    front = set(front_of(groups, lambda group: group.mean("active")))
    has_text = any(not math.isnan(group.mean("text_perplexity")) for group in groups)
    header = [*_HEADER, *(["text perplexity"] if has_text else [])]
    rows = [_cells(setup, group, place in front, has_text) for place, group in enumerate(groups)]
    if setup.settings.get("virtual_residents"):
        header += _MISSES
        rows = [[*cells, *_miss_cells(setup, group)] for cells, group in zip(rows, groups, strict=True)]
    if any(group.mean("images_encoded") > 0 for group in groups):
        header = [*header, *_PICTURES]
        rows = [[*cells, *_picture_cells(group)] for cells, group in zip(rows, groups, strict=True)]
    seeds = len(groups[0].runs)
    lines = [f"#### {heading}", "", f"{seeds} seeds", "", *_markdown(header, rows), ""]
    tasks = groups[0].tasks
    if groups[0].batches.startswith(MINORITY):
        task = groups[0].batches.removeprefix(MINORITY)
        share = _row_share(groups[0], task)
        lines += [
            f"{task}: {100 * share:.1f} % of the decode rows. Difference to topk in points, with its error over items:",
            "",
        ]
        tasks = [task, *([_OTHERS] if len(tasks) > 1 else [])]
    else:
        lines += ["Difference to topk by task in points, with its error over items; for topk the accuracy in %:", ""]
    rows = [[f"`{setup.names[group.policy]}`", *[_task_cell(setup, group, task) for task in tasks]] for group in groups]
    return [*lines, *_markdown(["policy", *tasks], rows), ""]


def _cells(setup: Setup, group: Group, on_front: bool, has_text: bool) -> list[str]:
    reference = setup.reference(group)
    change = None if reference is None or reference is group else group.difference(reference)
    name = f"`{setup.names[group.policy]}`"
    cells = [
        f"**{name}**" if on_front else name,
        f"{100 * group.accuracy().value:.2f}",
        *_difference_cells(change),
        _number(group.mean("perplexity"), 4),
        f"{group.mean('union_before'):.2f}",
        f"{group.mean('active'):.2f}",
        f"{_saved(group):.1f}",
        f"{100 * group.mean('retained_mass'):.2f}",
        f"{100 * group.mean('remapped_share'):.1f}",
        f"{100 * group.mean('guard_share'):.1f}",
        f"{group.mean('bytes_per_step') / 1e6:.2f}",
        f"{group.mean('expert_bytes_per_step') / 1e6:.2f}",
        f"{group.mean('step_ms_mean'):.2f}",
        f"{group.mean('step_ms_median'):.2f}",
        f"{group.mean('decode_tokens_per_s'):.0f}",
        f"{group.mean('rows_per_step'):.1f}",
        f"{100 * group.mean('decode_only_share'):.1f}",
    ]
    return [*cells, *([_number(group.mean("text_perplexity"), 4)] if has_text else [])]


def _miss_cells(setup: Setup, group: Group) -> list[str]:
    reference, misses = setup.reference(group), group.mean("misses")
    fewer = math.nan if reference is None or misses == 0 else reference.mean("misses") / misses
    changed = f"{100 * group.mean('changed_share'):.1f}"
    return [f"{group.mean('misses_before'):.2f}", f"{misses:.2f}", _number(fewer, 2), changed]


def _picture_cells(group: Group) -> list[str]:
    return [
        f"{group.mean('ttft_ms_mean'):.2f}",
        f"{group.mean('tokens_per_s'):.0f}",
        f"{100 * group.mean('tower_share'):.1f}",
        f"{100 * group.mean('decode_share'):.1f}",
    ]


def _difference_cells(change: Estimate | None) -> list[str]:
    if change is None:
        return ["", "", ""]
    return [f"{100 * change.value:+.2f}", _number(100 * change.items_error, 2), _number(100 * change.seeds_error, 2)]


def _task_cell(setup: Setup, group: Group, task: str) -> str:
    reference = setup.reference(group)
    tasks = [task]
    if task == _OTHERS:
        tasks = [name for name in group.tasks if group.batches != MINORITY + name]
    if reference is None or reference is group:
        return f"{100 * sum(group.accuracy(name).value for name in tasks) / len(tasks):.1f}"
    each = [change for name in tasks if (change := group.difference(reference, name)) is not None]
    if not each:
        return ""
    value = sum(change.value for change in each) / len(each)
    error = math.sqrt(sum(change.items_error**2 for change in each)) / len(each)
    return f"{100 * value:+.1f} ± {_number(100 * error, 1) or '?'}"


def _row_share(group: Group, task: str) -> float:
    """Returns the share of decode rows that belong to one task. A request's first token comes from prefill and is no decode row."""
    rows = {"own": 0, "all": 0}
    for run in group.runs:
        for name, entry in run["results"]["items"].items():
            count = entry["tokens"] - len(entry["ids"])
            rows["all"] += count
            rows["own"] += count if name == task else 0
    return rows["own"] / max(rows["all"], 1)


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [line(header), line(["---", *["---:"] * (len(header) - 1)]), *map(line, rows)]
