"""`lynx-rt calibrate`: how similar the experts of each layer are, for the policies `sere` and, with --alias, `alias`.

Runs every expert on every token of the text; see lynx_rt/research/calibrate.py. CPU only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lynx_rt.cli.files import check_output, read_input
from lynx_rt.cli.options import (
    add_engine_options,
    add_model,
    engine_options,
    format_table,
    integer,
    model_folder,
    positive_int,
)


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="compare experts, for sere and alias",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, metavar="FILE", help="plain text, cut into sequences of --length tokens")
    source.add_argument("--tasks", type=Path, metavar="DIR", help="*.jsonl task files: a question and its answer each")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="where to write the tables")
    parser.add_argument("--sequences", type=positive_int, default=400, help="at most (default: 400)")
    parser.add_argument("--length", type=positive_int, default=128, help="tokens of a sequence, at most (default: 128)")
    parser.add_argument(
        "--metric", choices=("frobenius", "cosine"), default="frobenius", help="of similarity (default: frobenius)"
    )
    parser.add_argument("--alias", type=positive_int, metavar="N", help="also merge experts until N per layer are left")
    parser.add_argument("--seed", type=integer, default=0, help="of the choice of items (default: 0)")
    add_engine_options(parser)
    parser.set_defaults(run=run, device="cpu")


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from lynx_rt import Engine, ValidationError
    from lynx_rt.research.calibrate import calibrate, text_sequences
    from lynx_rt.research.eval import load_items

    check_output(args.out, "out")
    text = "" if args.text is None else read_input(args.text, "text")
    items = [] if args.tasks is None else load_items(args.tasks, seed=args.seed)[: args.sequences]
    if any(item.image for item in items):
        raise ValidationError("tasks: calibration reads text alone, got questions about pictures", "tasks")
    with Engine(model_folder(args), **engine_options(args)) as engine:
        if args.text is not None:
            sequences = text_sequences(engine, text, args.length, args.sequences)
        else:
            sequences = [engine.encode(f"{item.prompt} {item.answer}")[: args.length] for item in items]
        calibration = calibrate(engine, sequences, metric=args.metric)
        layers = [layer.layer for layer in engine.stats().layers]
    calibration.save(args.out, num_experts=args.alias)

    rows = []
    for layer, similarity, usage in zip(layers, calibration.similarity, calibration.usage, strict=True):
        pairs = similarity[np.triu_indices(len(similarity), 1)]
        means = (pairs.min(), np.median(pairs), pairs.max()) if len(pairs) else (1.0, 1.0, 1.0)
        rows.append([layer, *[f"{value:.3f}" for value in means], int((usage > 0).sum())])
    print(f"{args.out}: {calibration.num_tokens} tokens, {args.metric}")
    print(format_table(["layer", "similarity least", "median", "most", "experts used"], rows))
    return 0
