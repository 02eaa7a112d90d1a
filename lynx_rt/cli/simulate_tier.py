"""`lynx-rt simulate --residents`: variants of a model whose experts are partly on the disk, on recorded router logits."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_rt.cli.options import format_table, number, selections
from lynx_rt.errors import LynxError, ValidationError

if TYPE_CHECKING:
    from lynx_rt.research.recording import Recording
    from lynx_rt.research.tier_simulation import TierSimulation


def add_tier_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("experts on the disk")
    group.add_argument(
        "--residents",
        type=_numbers,
        metavar="C",
        help="experts of each layer that stay in memory, below 1 a share, or several, as in 0.1,0.25,0.5",
    )
    group.add_argument(
        "--expert-policy",
        type=selections,
        default=["lfu"],
        help="which experts stay: lfu:decay=0.99, score:decay=0.99, lru, lfru, random, static (by the uses before the measured steps), "
        "static:file=F, prefill:weight=10, plec (with --prefetch), ring, belady, none, or several (default: lfu)",
    )
    group.add_argument(
        "--prefetch",
        type=selections,
        default=["none"],
        help="what is read ahead: none, popularity, token_table, network:file=NETWORK.npz, prefill, ewma, transition, linear, next_router, "
        "external:file=SCORES.npy, each with n= experts per row and d= layers ahead, or several (default: none)",
    )
    group.add_argument("--disk", type=number, default=1.0, metavar="GB/S", help="rate of the disk (default: 1)")
    group.add_argument(
        "--expert-bytes", metavar="SIZE", help="of one expert: 2.4MB (default: of the recording's model)"
    )
    group.add_argument(
        "--compute-ms", type=number, default=0.1, help="to compute one expert, for all its rows (default: 0.1)"
    )
    group.add_argument("--layer-ms", type=number, default=0.2, help="of a layer's attention and router (default: 0.2)")
    group.add_argument(
        "--measured",
        type=number,
        default=0.5,
        metavar="SHARE",
        help="of the steps, the last ones; those before fill caches and train predictors (default: 0.5)",
    )
    group.add_argument(
        "--save-static",
        type=Path,
        metavar="FILE",
        help="write the lists of static, for --expert-policy static:file=FILE",
    )
    group.add_argument(
        "--plots", type=Path, metavar="DIR", help="draw misses and tokens/s by residents there; needs matplotlib"
    )


def check_without_residents(args: argparse.Namespace) -> None:
    """Raises ValidationError for an option that does nothing without --residents."""
    defaults: dict[str, Any] = {
        "expert_policy": ["lfu"],
        "prefetch": ["none"],
        "expert_bytes": None,
    }
    defaults |= {"save_static": None, "plots": None}
    for name, value in defaults.items():
        if getattr(args, name) != value:
            option = name.replace("_", "-")
            raise ValidationError(f"--{option} needs --residents", option)


def run_tier(args: argparse.Namespace, recording: Recording) -> int:
    from lynx_rt.cli.files import check_output, check_output_folder
    from lynx_rt.research.tier_simulation import Tier, TierSimulator, save_static

    check_output(args.save_static, "save-static")
    if args.plots:
        from lynx_rt.research.study_plots import require_matplotlib

        require_matplotlib()
        check_output_folder(args.plots, "plots")
    tier = Tier(
        expert_bytes=_expert_bytes(args.expert_bytes, recording),
        disk_rate=1e9 * args.disk,
        expert_seconds=1e-3 * args.compute_ms,
        layer_seconds=1e-3 * args.layer_ms,
        measured=args.measured,
    )
    results = []
    for batch, admission in itertools.product(args.batch, args.admission):
        simulator = TierSimulator(recording, tier, batch=batch, seed=args.seed, admission=admission)
        if args.save_static:
            save_static(args.save_static, simulator.static_lists())
        variants = itertools.product(args.selection or ["topk"], args.residents, args.expert_policy, args.prefetch)
        results += [
            simulator.run(selection, policy, share, prefetch) for selection, share, policy, prefetch in variants
        ]
    print(_format(results))
    if args.layers:
        print(f"\nmisses per step, by layer\n{_format_layers(results, recording)}")
    write_json(args, recording, results)
    if args.plots:
        from lynx_rt.research.tier_plots import draw_tiers

        for file in draw_tiers(results, args.plots):
            print(file)
    return 0


def write_json(args: argparse.Namespace, recording: Recording, results: list[Any]) -> None:
    """Writes what --json asks for."""
    if args.json is None:
        return
    report = {
        "command": args.command_line,
        "recording": str(args.recording),
        "model": recording.model,
        "recorded_under": recording.selection,
        "rows": len(recording),
        "results": [result.to_dict() for result in results],
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _expert_bytes(text: str | None, recording: Recording) -> int:
    from lynx_rt import _C

    if text is not None:
        return _C.parse_memory(text, "expert-bytes")
    try:
        size = int(_C.inspect(recording.model)["expert_bytes"])
    except (LynxError, OSError) as error:
        raise ValidationError(
            f"--expert-bytes is needed: the recording's model cannot be read: {error}", "expert-bytes"
        ) from None
    return -(-size // 4096) * 4096  # as a record of `lynx-rt pack`


def _numbers(text: str) -> list[float]:
    """Parses "0.1,0.25,8"."""
    return [number(piece) for piece in text.split(",")]


def _name(result: TierSimulation) -> str:
    return "steps" if result.batch is None else str(result.batch)


def _format(results: list[TierSimulation]) -> str:
    guesses = any(result.prefetch != "none" for result in results)
    admissions = any(result.admission != "first_come" for result in results)
    header = ["selection", "batch", *(["admission"] if admissions else []), "residents", "policy", "prefetch", "used"]
    header += ["hits %", "misses", "MB/step", "wait ms", "step ms", "tok/s", "mass"]
    header += ["there %", "recall %", "needed %", "found %", "in time %", "wasted MB"] if guesses else []
    rows = []
    for r in results:
        row = [r.selection, _name(r), *([r.admission] if admissions else []), f"{r.residents:g}", r.policy, r.prefetch]
        figures = r.to_dict()
        row += [f"{figures['used_per_layer']:.2f}", f"{100 * r.hit_rate:.1f}", f"{r.misses_per_layer:.2f}"]
        row += [f"{r.bytes_per_step / 1e6:.1f}", f"{figures['wait_ms']:.2f}", f"{figures['seconds_ms']:.2f}"]
        row += [f"{r.tokens_per_s:.1f}", f"{r.retained_mass:.4f}"]
        if guesses and r.prefetch == "none":
            row += ["-"] * 6
        elif guesses:
            row += [f"{100 * share:.1f}" for share in (r.there, r.recall, r.precision, r.found, r.in_time_share)]
            row += [f"{figures['wasted_bytes_per_step'] / 1e6:.1f}"]
        rows.append(row)
    return format_table(header, rows)


def _format_layers(results: list[TierSimulation], recording: Recording) -> str:
    header = ["selection", "batch", "residents", "policy", *map(str, recording.layers.tolist())]
    rows = [
        [r.selection, _name(r), f"{r.residents:g}", r.policy, *[f"{misses:.2f}" for misses in r.misses.mean(0)]]
        for r in results
    ]
    return format_table(header, rows)
