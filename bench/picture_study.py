"""Studies expert selection on questions about pictures: documents, charts and scenes, each kind in batches of its own.

    python tools/training/picture_tasks.py --out pictures --count 500
    python bench/picture_study.py MODEL --tasks pictures --out OUT

Documents (forms, receipts, tables) are scored by ANLS as DocVQA is, charts (bars, lines) by relaxed accuracy as ChartQA, scenes (shapes)
by the accuracy of VQA. Runs `lynx-rt study` once per kind, into OUT/{documents,charts,scenes}; the same command again goes on where it
was interrupted. Writes OUT/pictures.md: accuracy, experts, times and the share of the vision tower, by batch size. Needs matplotlib for the plots.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from lynx_rt.cli.main import main as lynx_rt
from lynx_rt.research.study_records import read_runs
from lynx_rt.research.study_stats import Group, Setup, setups

KINDS = {
    "documents": ("(i) DocVQA-like: forms, receipts, tables; ANLS", "form,receipt,table"),
    "charts": ("(j) ChartQA-like: bars, lines; relaxed accuracy", "bars,lines"),
    "scenes": ("(k) VQA-like: shapes; VQA accuracy", "shapes"),
}
SELECTIONS = "topk,top_j:j=3,top_j:j=2,capacity:factor=1,capacity:factor=2,lynx,oea:k0=2,oea:k0=1,cover"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*[f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)], ""]


def lost(setup: Setup, group: Group, task: str | None = None) -> str:
    """Returns the points lost to topk with their error; topk's own accuracy in %."""
    reference = setup.reference(group)
    if reference is None or reference is group:
        return f"{100 * group.accuracy(task).value:.2f} %"
    change = group.difference(reference, task)
    assert change is not None  # the same seeds and items
    return f"{-100 * change.value + 0.0:.2f} ± {100 * change.items_error:.2f}"


def experts_read(group: Group) -> str:
    return f"{group.mean('active'):.2f} of {group.mean('union_before'):.2f}"


def speeds(group: Group) -> str:
    return f"{group.mean('decode_tokens_per_s'):.0f} / {group.mean('tokens_per_s'):.0f}"


def ttft(group: Group) -> str:
    return f"{group.mean('ttft_ms_mean'):.1f}"


def by_batch(setup: Setup, cell: Callable[[Group], str]) -> list[str]:
    """Returns a table of policies by batch sizes."""
    sizes = setup.batch_sizes("mixed")
    rows = []
    for policy, name in setup.names.items():
        groups = [setup.find(policy, size, "mixed") for size in sizes]
        rows.append([f"`{name}`", *["" if group is None else cell(group) for group in groups]])
    return table(["policy", *[f"{size} rows" for size in sizes]], rows)


def section(setup: Setup, title: str) -> list[str]:
    """Returns the tables of one kind."""
    command = setup.groups[0].runs[0]["command"]
    lines = [f"## {title}", "", "```sh", command, "```", ""]
    lines += ["Points lost:", "", *by_batch(setup, lambda group: lost(setup, group))]
    lines += ["Experts read, of those that the model's own routing would read:", "", *by_batch(setup, experts_read)]
    lines += ["Tokens per second of decode-only steps / of all steps:", "", *by_batch(setup, speeds)]
    lines += ["Time to first token, mean, ms:", "", *by_batch(setup, ttft)]
    largest = max(setup.batch_sizes("mixed"))
    for size in sorted({16, largest} & set(setup.batch_sizes("mixed"))):
        groups = setup.at("mixed", size)
        rows = [[f"`{setup.names[g.policy]}`", *[lost(setup, g, task) for task in g.tasks]] for g in groups]
        lines += [f"Points lost at {size} rows by family:", "", *table(["policy", *groups[0].tasks], rows)]
    topk = [group for group in setup.groups if setup.reference(group) is group]
    rows = []
    for group in topk:
        tower, decode = group.mean("tower_share"), group.mean("decode_share")
        shares = [f"{100 * share:.1f} %" for share in (tower, 1 - tower - decode, decode)]
        rows.append([str(group.batch), *shares, f"{100 * group.mean('decode_only_share'):.1f} %"])
    header = ["rows", "tower", "prompts", "decode-only steps", "tokens from decode-only steps"]
    lines += ["Shares of the time of all steps under topk:", "", *table(header, rows)]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tasks", type=Path, required=True, help="of picture_tasks.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", default="1,4,8,16,32")
    parser.add_argument("--items", default="100", help="per family and seed")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--selection", default=SELECTIONS)
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing: write OUT/pictures.md of the runs in OUT"
    )
    options = parser.parse_args()
    lines = []
    for kind, (title, families) in KINDS.items():
        argv = [
            "study",
            options.model,
            "--tasks",
            str(options.tasks),
            "--tasks-only",
            families,
            "--out",
            str(options.out / kind),
        ]
        argv += [
            "--batch",
            options.batch,
            "--items",
            options.items,
            "--seeds",
            options.seeds,
            "--selection",
            options.selection,
        ]
        if not options.report_only and (code := lynx_rt([*argv, "--max-tokens", "16", "--no-perplexity"])):
            return code
        for setup in setups(read_runs([options.out / kind / "runs.jsonl"])):
            lines += section(setup, title)
    (options.out / "pictures.md").write_text("\n".join(lines), encoding="utf-8")
    print(options.out / "pictures.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
