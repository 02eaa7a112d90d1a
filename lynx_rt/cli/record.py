"""`lynx-rt record`: router logits and experts of every decode step while task items are answered, for `lynx-rt simulate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lynx_rt.cli.files import check_output
from lynx_rt.cli.options import add_engine_options, add_model, engine_options, integer, model_folder, positive_int


def add_command(commands: Any) -> None:
    parser = commands.add_parser("record", help="record router logits", description=__doc__)
    add_model(parser)
    parser.add_argument("--tasks", type=Path, required=True, metavar="DIR", help="folder of *.jsonl task files")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="where to write router logits and experts")
    parser.add_argument(
        "--routed-experts",
        type=Path,
        metavar="FILE.safetensors",
        help="where to write the experts of full steps alone, for --selection replay:file=... at the same --batch",
    )
    parser.add_argument("--batch", type=positive_int, default=16, help="sequences decoded together (default: 16)")
    parser.add_argument("--selection", default="topk", help="policy to decode under (default: topk)")
    parser.add_argument("--items", type=positive_int, default=256, help="items of all tasks together (default: 256)")
    parser.add_argument("--max-tokens", type=positive_int, default=64, help="per answer (default: 64)")
    parser.add_argument("--seed", type=integer, default=0, help="of the choice and order of items (default: 0)")
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt import Engine, SamplingParams, ValidationError
    from lynx_rt.research.eval import load_items
    from lynx_rt.research.recording import take_recording

    if args.out is None and args.routed_experts is None:
        raise ValidationError("give --out, --routed-experts or both", "out")
    check_output(args.out, "out")
    check_output(args.routed_experts, "routed-experts")
    items = load_items(args.tasks, seed=args.seed)[: args.items]
    prompts = [{"prompt": item.prompt, **item.media()} for item in items]
    if args.routed_experts is not None and len(prompts) < args.batch:
        raise ValidationError(f"{len(prompts)} items never fill a step of --batch {args.batch}", "batch")
    # Mixed steps are off, so that every decode row is in a decode-only step: only these are recorded.
    fixed = {"max_num_seqs": args.batch, "enable_prefix_caching": False, "enable_mixed_chunk": False}
    options = {**fixed, **engine_options(args), "expert_selection": args.selection, "record_router_logits": True}
    options["enable_return_routed_experts"] = args.out is not None  # the experts of prompts
    with Engine(model_folder(args), **options) as engine:
        outputs = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=args.max_tokens, stop=["\n"]))
        recording = take_recording(engine)
    if args.out is not None:
        recording.add_prompts(outputs)
    steps = len(recording.step_offsets) - 1
    if args.out is not None:
        recording.save(args.out)
        print(f"{args.out}: {len(recording)} rows of {steps} decode steps, {recording.selection}")
    if args.routed_experts is not None:
        rows = recording.save_routed_experts(args.routed_experts, args.batch)
        print(f"{args.routed_experts}: {rows} rows of {rows // args.batch} full decode steps, {recording.selection}")
    return 0
