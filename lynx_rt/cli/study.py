"""`lynx-rt study`: every expert-selection policy on the same batches of the same tasks, with error bars, a table and plots.

Runs each policy at each batch size, composition of the batch and seed; a seed draws the items and their order. Batches are kept
full, decoding is greedy, and topk, which is always run, is the reference. Each finished run is a line of OUT/runs.jsonl; the same
command again runs what is missing there. OUT/table.md and OUT/*.png are made from all runs that OUT holds.

compositions of the batch (--batches):
  mixed          all tasks shuffled together
  single         one task after the other, each alone in the batch; the same items as mixed
  minority:TASK  the task has one of 16 rows on average, among all other tasks

example:
  lynx-rt study MODEL --tasks bench/tasks --out study --selection lynx,oea:k0=2 --batch 16 --batches mixed,minority:date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lynx_rt.cli.files import check_output_folder
from lynx_rt.cli.options import (
    add_engine_options,
    add_model,
    add_virtual_cache_options,
    engine_options,
    integer,
    model_folder,
    positive_int,
    positive_ints,
    selections,
    virtual_cache_options,
)

_SELECTIONS = ["topk", "lynx", "oea:k0=1", "oea:k0=2"]


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="compare expert-selection policies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    parser.add_argument("--tasks", type=Path, metavar="DIR", help="folder of *.jsonl task files")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="OUT", help="folder of runs.jsonl, the table and the plots"
    )
    parser.add_argument(
        "--selection", type=selections, default=_SELECTIONS, help=f"policies (default: {','.join(_SELECTIONS)})"
    )
    sizes = [1, 4, 8, 16, 32, 64]
    parser.add_argument(
        "--batch", type=positive_ints, default=sizes, help="sequences decoded together (default: 1,4,8,16,32,64)"
    )
    parser.add_argument(
        "--batches", type=_batches, default=["mixed"], help="mixed, single, minority:TASK, or several (default: mixed)"
    )
    parser.add_argument(
        "--seeds", type=_seeds, default=[0, 1, 2], help="three or more for errors over seeds (default: 0,1,2)"
    )
    parser.add_argument("--items", type=positive_int, default=100, help="per task and seed (default: 100)")
    parser.add_argument("--tasks-only", type=_names, default=[], metavar="TASKS", help="of the folder (default: all)")
    parser.add_argument("--max-tokens", type=positive_int, default=64, help="per answer (default: 64)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="also measure the perplexity of this text")
    parser.add_argument("--no-perplexity", action="store_true", help="do not measure that of the expected answers")
    add_engine_options(parser)
    add_virtual_cache_options(parser)
    parser.add_argument("--no-plots", action="store_true", help="write no plots, which need matplotlib")
    parser.add_argument(
        "--report-only",
        type=Path,
        nargs="*",
        metavar="RUNS",
        help="run nothing: make table and plots of OUT/runs.jsonl, or of these runs.jsonl files together",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt.research.study_records import read_runs
    from lynx_rt.research.study_report import write_report

    if not args.no_plots:
        from lynx_rt.research.study_plots import require_matplotlib

        require_matplotlib()  # raises before hours of runs, not after them
    check_output_folder(args.out, "out")
    if args.report_only is None:
        _run_missing(args)
    records = read_runs(args.report_only or [args.out / "runs.jsonl"])
    for file in write_report(records, args.out, plots=not args.no_plots):
        print(file)
    return 0


def _run_missing(args: argparse.Namespace) -> None:
    from lynx_rt import _C
    from lynx_rt.errors import ValidationError
    from lynx_rt.research.study import StudyOptions, run_study
    from lynx_rt.research.study_records import RunLog

    if args.tasks is None:
        raise ValidationError("--tasks DIR is needed, except with --report-only", "tasks")
    folder = model_folder(args)
    options = StudyOptions(
        model=folder,
        tasks=args.tasks,
        selections=args.selection,
        batch_sizes=args.batch,
        batches=args.batches,
        seeds=args.seeds,
        items=args.items,
        tasks_only=args.tasks_only,
        max_tokens=args.max_tokens,
        text=args.text,
        perplexity=not args.no_perplexity,
        engine={**engine_options(args), **virtual_cache_options(args)},
        num_experts_per_tok=_C.inspect(folder).get("num_experts_per_tok", 0),
    )
    with RunLog(args.out / "runs.jsonl") as log:
        try:
            run_study(options, log, args.command_line)
        except KeyboardInterrupt:
            print(
                f"{len(log.records)} runs are in {args.out}; the same command again goes on from there", file=sys.stderr
            )
            raise


def _batches(text: str) -> list[str]:
    from lynx_rt.errors import ValidationError
    from lynx_rt.research.study import check_batches

    try:
        return [check_batches(piece) for piece in _names(text)]
    except ValidationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seeds(text: str) -> list[int]:
    seeds = [integer(piece) for piece in text.split(",")]
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {min(seeds)}")
    return seeds


def _names(text: str) -> list[str]:
    """Parses "gsm,add"."""
    names = text.split(",")
    if "" in names:
        raise argparse.ArgumentTypeError(f"an empty name in {text!r}")
    return names
