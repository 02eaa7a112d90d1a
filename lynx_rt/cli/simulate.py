"""`lynx-rt simulate`: expert-selection policies on recorded router logits, without the model.

Batches are formed anew from the recorded requests, by continuous batching, for every --batch; "steps" takes the steps as
they were recorded.

With --residents, only so many experts of each layer are in memory (docs/tiers.md): what each policy of residents, each predictor and each
selection reads from the disk, and how long steps take by a virtual clock.

example:
  lynx-rt simulate r.npz --selection topk,topk:resident=1 --batch 1,16 --residents 0.25,0.5 --expert-policy lfu,lru,belady
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_rt.cli.files import check_output
from lynx_rt.cli.options import format_table, integer, positive_int, selections
from lynx_rt.cli.simulate_tier import add_tier_options, check_without_residents, run_tier, write_json
from lynx_rt.engine.outputs import layer_mean

if TYPE_CHECKING:
    from lynx_rt.research.simulate import Simulation


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "simulate",
        help="run policies on recorded logits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recording", type=Path, metavar="FILE.npz", help="what `lynx-rt record` wrote")
    parser.add_argument("--selection", type=selections, help="policies (default: topk,lynx; with --residents topk)")
    parser.add_argument(
        "--batch", type=_batches, default=[None], help='batch sizes, or "steps" (default), as in "steps,1,4,16"'
    )
    parser.add_argument("--seed", type=integer, help="of the order of requests (default: as recorded)")
    parser.add_argument(
        "--admission",
        type=selections,
        default=["first_come"],
        help="which waiting request takes a free place of a batch: first_come, affinity:window=128,skips=128 (as an engine's --admission), "
        "predicted:window=64,skips=64 (by the token table), own (by what it will use), or several; with --batch (default: first_come)",
    )
    parser.add_argument("--layers", action="store_true", help="also show the experts read in each layer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    add_tier_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt.research.recording import Recording
    from lynx_rt.research.simulate import simulate

    check_output(args.json, "json")
    recording = Recording.load(args.recording)
    if args.residents:
        return run_tier(args, recording)
    check_without_residents(args)
    results = [
        simulate(recording, selection, batch=batch, seed=args.seed, admission=admission)
        for batch in args.batch
        for admission in args.admission
        for selection in args.selection or ["topk", "lynx"]
    ]
    print(_format(results))
    if args.layers:
        print(f"\nexperts read per step, by layer\n{_format_layers(results)}")
    write_json(args, recording, results)
    return 0


def _batches(text: str) -> list[int | None]:
    """Parses "steps,1,4"."""
    return [None if piece == "steps" else positive_int(piece) for piece in text.split(",")]


def _name(result: Simulation) -> str:
    return "steps" if result.batch is None else str(result.batch)


def _format(results: list[Simulation]) -> str:
    admissions = any(result.admission != "first_come" for result in results)
    header = [
        "selection",
        "batch",
        *(["admission"] if admissions else []),
        "steps",
        "rows/step",
        "experts before",
        "after",
        "fewer %",
        "mass",
        "remapped %",
    ]
    header += ["guard %", "steps/s"]
    rows = [
        [
            result.selection,
            _name(result),
            *([result.admission] if admissions else []),
            result.num_steps,
            f"{result.rows_per_step:.1f}",
            f"{result.union_before:.2f}",
            f"{result.active:.2f}",
            f"{100 * (1 - result.active / result.union_before) if result.union_before else 0:.1f}",
            f"{result.retained_mass:.4f}",
            f"{100 * result.remapped_share:.1f}",
            f"{100 * result.guard_share:.1f}",
            f"{result.num_steps / result.seconds:.0f}",
        ]
        for result in results
    ]
    return format_table(header, rows)


def _format_layers(results: list[Simulation]) -> str:
    header = ["selection", "batch", *[str(layer.layer) for layer in results[0].layers]]
    rows = [
        [result.selection, _name(result), *[f"{layer_mean([layer], 'active', 'steps'):.2f}" for layer in result.layers]]
        for result in results
    ]
    return format_table(header, rows)
