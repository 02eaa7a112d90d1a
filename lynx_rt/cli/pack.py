"""`lynx-rt pack`: writes the experts of a model to a file of their own.

The file has one record per layer and expert, in the form in which the CPU multiplies it, so that one read of the disk brings an expert.
Reads one expert after the other, so that a model that is larger than the memory can be packed. See docs/tiers.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lynx_rt.cli.files import check_output
from lynx_rt.cli.options import QUANTIZATIONS, add_model, format_bytes, model_folder, positive_int


def add_command(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="write the experts to a file of their own",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where to write them")
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="none",
        help="what 16-bit experts become; dequantize: quantised ones become 16-bit (default: none)",
    )
    parser.add_argument("--num-threads", type=positive_int, help="default: one per core, within affinity and CPU quota")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt import _C
    from lynx_rt.engine.progress import LoadProgress

    check_output(args.output, "output")
    packed = _C.pack_experts(
        model_folder(args), str(args.output), args.quantization, args.num_threads or 0, LoadProgress()
    )
    if args.json:
        print(json.dumps(packed))
        return 0
    print(
        f"{args.output}: {packed['num_records']} experts of {packed['num_layers']} layers, "
        f"{format_bytes(packed['file_bytes'])}, {format_bytes(packed['record_bytes'])} each at most"
    )
    return 0
