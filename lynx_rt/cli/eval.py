"""`lynx-rt eval`: accuracy of expert-selection policies and of quantised weights on task sets, in mixed batches."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_rt.cli.files import check_output
from lynx_rt.cli.options import (
    add_engine_options,
    add_model,
    engine_options,
    format_table,
    integer,
    model_folder,
    positive_int,
    quantizations,
    selections,
)

if TYPE_CHECKING:
    from lynx_rt.research.eval import PolicyResult


def add_command(commands: Any) -> None:
    parser = commands.add_parser("eval", help="measure accuracy", description=__doc__)
    add_model(parser)
    parser.add_argument("--tasks", type=Path, required=True, metavar="DIR", help="folder of *.jsonl task files")
    parser.add_argument("--batch", type=positive_int, default=16, help="sequences decoded together (default: 16)")
    parser.add_argument("--selection", type=selections, default=["topk", "lynx"], help="policies (default: topk,lynx)")
    parser.add_argument("--limit", type=positive_int, help="items per task (default: all)")
    parser.add_argument("--max-tokens", type=positive_int, default=64, help="per answer (default: 64)")
    parser.add_argument("--seed", type=integer, default=0, help="of the choice and order of items (default: 0)")
    add_engine_options(parser, quantization=quantizations)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt.engine.engine import Engine
    from lynx_rt.research.eval import answer_perplexity, evaluate, load_items

    check_output(args.json, "json")
    folder = model_folder(args)
    items = load_items(args.tasks, args.limit, args.seed)
    results = []
    # Prefix caching is off, so that a later policy does not find the prompts of an earlier one. Mixed steps are off, so
    # that selection acts on every decode row although the answers are short and prompts arrive all the time.
    fixed = {"max_num_seqs": args.batch, "enable_prefix_caching": False, "enable_mixed_chunk": False}
    for quantization in args.quantization:
        options = {**fixed, **engine_options(args), "quantization": quantization}
        if quantization == "none":
            options["quantization_cache"] = None
        with Engine(folder, **options) as engine:
            perplexity = answer_perplexity(engine, items)
            for selection in args.selection:
                noted = {"quantization": quantization, "perplexity": perplexity, "max_tokens": args.max_tokens}
                results.append(evaluate(engine, items, selection, **noted))
    print(_format(results, args.batch))
    if args.json:
        report = {
            "command": args.command_line,
            "model": args.model,
            "batch": args.batch,
            "seed": args.seed,
            "results": [result.to_dict() for result in results],
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _points(error: float) -> str:
    return "?" if math.isnan(error) else f"{100 * error:.2f}"


def _format(results: list[PolicyResult], batch: int) -> str:
    base = results[0]
    header = ["", "accuracy %", "+-", "difference", "+-", "perplexity", "rows/step", "experts before", "after", "mass"]
    header += ["decode-only %"]
    rows = []
    for result in results:
        change, change_error = result.difference(base)
        experts = result.experts
        rows.append(
            [
                result.name,
                f"{100 * result.accuracy:.2f}",
                _points(result.standard_error),
                "" if result is base else f"{100 * change:+.2f}",
                "" if result is base else _points(change_error),
                f"{result.perplexity:.4f}",
                f"{experts.rows_per_step:.1f}",
                f"{experts.union_before:.2f}",
                f"{experts.active:.2f}",
                f"{experts.retained_mass:.4f}",
                f"{100 * result.decode_only_share:.1f}",
            ]
        )
    count = sum(len(scores) for scores in base.scores.values())
    tasks = [[task, *[f"{100 * result.task_accuracy[task]:.1f}" for result in results]] for task in base.task_accuracy]
    return "\n".join(
        [
            f"{count} items of {len(base.scores)} tasks, batch {batch}; +- is one standard error (? = of one item), "
            f"differences are to {base.name}, item by item;",
            "perplexity of a token of the expected answers;",
            "decode-only % = share of the generated tokens from decode-only steps: selection acts on these alone",
            format_table(header, rows),
            "",
            format_table(["accuracy % by task", *[result.name for result in results]], tasks),
        ]
    )
