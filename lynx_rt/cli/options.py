"""Options and formats that several commands share."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lynx_rt

_POLICY_START = re.compile(r"[A-Za-z]\w*(:|@|$)")  # "lynx", "oea:k0=2", "lynx@0=topk"; not "beta=4"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=lynx_rt.shipped_model(),
        help="model folder, GGUF file, or org/name on the Hugging Face Hub (default: the lynx-nano that comes with the package)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub (default: main)")


def model_folder(args: argparse.Namespace) -> str:
    """Returns the folder or GGUF file of MODEL: as it was given; a name on the Hub is found in the cache or downloaded.

    Raises what lynx_rt.engine.model_path.resolve() raises.
    """
    from lynx_rt.engine.model_path import resolve

    folder = resolve(args.model, getattr(args, "load_format", "auto"), args.revision)
    return args.model if Path(args.model) == folder else str(folder)


QUANTIZATIONS = ("none", "dequantize", "int8", "int4")


def quantization(text: str) -> str:
    if text not in QUANTIZATIONS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(QUANTIZATIONS)}, got {text!r}")
    return text


def quantizations(text: str) -> list[str]:
    """Parses "none,int8"."""
    return [quantization(piece) for piece in text.split(",")]


def add_engine_options(parser: argparse.ArgumentParser, quantization: Callable[[str], Any] = quantization) -> None:
    """Adds --device --dtype --quantization --quantization-cache --activations --memory --expert-file --expert-memory
    --expert-policy --expert-prefetch --io-timeout --admission --num-threads; engine_options() reads them."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument(
        "--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: the checkpoint's)"
    )
    parser.add_argument(
        "--quantization",
        type=quantization,
        default=quantization("none"),
        help="what 16-bit weights become when they are loaded: none, int8, int4; dequantize: quantised ones become "
        "16-bit (default: none)",
    )
    parser.add_argument("--quantization-cache", metavar="DIR", help="folder that keeps the quantised weights")
    parser.add_argument(
        "--activations",
        choices=("int8", "bfloat16"),
        default="int8",
        help="activations in products with weights that stay quantised, on the CPU; bfloat16: --dtype (default: int8)",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory for weights, KV cache, experts and all else: 8GB, 50%%, auto = 80%% of what is free (default: what is needed)",
    )
    parser.add_argument("--expert-file", metavar="FILE", help="file of the model's experts, made by lynx-rt pack")
    parser.add_argument(
        "--expert-memory",
        metavar="SIZE",
        help="memory for experts, of which the others are read from --expert-file when they are needed: 8GB, 25%%, auto "
        "(default: all stay in memory)",
    )
    parser.add_argument(
        "--expert-policy",
        default="lfu",
        help="which experts stay: lfu:decay=0.99, score:decay=0.99, lru, lfru, random, static:file=F, none; with copies of all in int4, "
        "which changes results: lfu:miss=low, .., hi_lo (default: lfu)",
    )
    parser.add_argument(
        "--expert-prefetch",
        default="none",
        help="experts read ahead: none, next_router, next_router:n=6; pregated, which changes results (default: none)",
    )
    parser.add_argument(
        "--io-timeout",
        type=number,
        metavar="SECONDS",
        help="end the requests of a step that waits longer for a read of experts (default: it waits)",
    )
    parser.add_argument(
        "--admission",
        default="first_come",
        help="which waiting request runs next: first_come, affinity, affinity:window=128,skips=128,ms=0 (default: first_come)",
    )
    parser.add_argument("--num-threads", type=positive_int, help="default: one per core, within affinity and CPU quota")


def add_virtual_cache_options(parser: argparse.ArgumentParser) -> None:
    """Adds --virtual-residents --virtual-residency; virtual_cache_options() reads them."""
    parser.add_argument(
        "--virtual-residents",
        type=number,
        default=0.0,
        metavar="C",
        help="count what a cache of C experts of each layer (below 1 a share) would read; policies with resident=NATS see it",
    )
    parser.add_argument(
        "--virtual-residency",
        default="lfu",
        metavar="POLICY",
        help="what that cache keeps: lfu, lfu:decay=0.9, lru, ...",
    )


def virtual_cache_options(args: argparse.Namespace) -> dict[str, Any]:
    if not args.virtual_residents:
        return {}
    return {"virtual_residents": args.virtual_residents, "virtual_residency": args.virtual_residency}


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": args.device,
        "dtype": args.dtype,
        "quantization": args.quantization,
        "quantization_cache": args.quantization_cache,
        "activations": args.activations,
        "memory": args.memory,
        "expert_file": args.expert_file,
        "expert_memory": args.expert_memory,
        "expert_policy": args.expert_policy,
        "expert_prefetch": args.expert_prefetch,
        "io_timeout_s": args.io_timeout,
        "admission": args.admission,
        "num_threads": args.num_threads,
    }


def add_image_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds --image --mm-processor-kwargs; the second is an option of Engine. what: which prompt the images belong to."""
    parser.add_argument(
        "--image",
        action="append",
        type=Path,
        metavar="FILE",
        help=f"an image {what}; may be given several times",
    )
    parser.add_argument(
        "--mm-processor-kwargs",
        type=json_object,
        metavar="JSON",
        help="makes images smaller: '{\"max_pixels\": 262144}'",
    )


def image_files(args: argparse.Namespace) -> list[Path]:
    """Returns the files of --image. One that is not there is wrong usage, before a model is loaded."""
    files: list[Path] = [file.expanduser() for file in args.image or ()]
    for file in files:
        if not file.is_file():
            args.parser.error(f"argument --image: {str(file)!r} is no file")
    return files


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def json_object(text: str) -> dict[str, Any]:
    """Parses a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got {text!r}")
    return value


def positive_int(text: str) -> int:
    value = integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def non_negative_int(text: str) -> int:
    value = integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def positive_ints(text: str) -> list[int]:
    """Parses "1,8,32"."""
    return [positive_int(piece) for piece in text.split(",")]


def selections(text: str) -> list[str]:
    """Parses policies that are separated by commas, like the parameters of one: "topk,oea:k0=2,lynx:alpha=8,beta=4"."""
    policies: list[str] = []
    for piece in text.split(","):
        if not piece:
            raise argparse.ArgumentTypeError(f"an empty policy in {text!r}")
        if _POLICY_START.match(piece):
            policies.append(piece)
        elif policies:
            policies[-1] += f",{piece}"
        else:
            raise argparse.ArgumentTypeError(f"must start with a policy name, got {piece!r}")
    return policies


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Formats a table. Cells of the first column are aligned left, those of the others right."""
    cells = [list(header), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        line = [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]]
        lines.append("  ".join(line).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def format_bytes(count: float) -> str:
    """Formats a number of bytes in decimal units, with three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
