"""`lynx-rt bench serve`: load on a server of OpenAI's API, and what its clients see.

Without --base-url a server of MODEL is started. Every rate, concurrency and policy is one point; policies take turns at
each. Requests come at random times (--request-rate, --burstiness), or as a trace has them, or up to --max-concurrency at
once. Definitions and names of results are those of `vllm bench serve`; docs/load_tests.md has them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_rt.cli.options import (
    format_bytes,
    format_table,
    integer,
    json_object,
    non_negative_int,
    number,
    positive_int,
    positive_ints,
    selections,
)
from lynx_rt.errors import LynxError

if TYPE_CHECKING:
    from lynx_rt.bench.client import Target
    from lynx_rt.bench.sweep import Workload

_INTERRUPTED = 130
_PROMPTS = 100  # of a point, where neither --num-prompts nor a file says how many


def add_command(kinds: Any) -> None:
    parser = kinds.add_parser(
        "serve", help="a server under load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="model to serve; with --base-url the folder with the server's tokenizer (default: the lynx-nano of the package)",
    )
    _add_server(parser.add_argument_group("server"))
    _add_requests(parser.add_argument_group("requests"))
    _add_times(parser.add_argument_group("times"))
    _add_results(parser.add_argument_group("results"))
    parser.set_defaults(run=run)


def _add_server(group: Any) -> None:
    group.add_argument("--base-url", metavar="URL", help="a server that runs (default: one is started)")
    group.add_argument("--api-key", default="", metavar="KEY", help="of that server")
    group.add_argument("--model-name", metavar="NAME", help="the model's name there (default: the first one it lists)")
    group.add_argument(
        "--selection", type=selections, help="policies that take turns at each point (default: as the server has it)"
    )
    group.add_argument("--serve-args", type=shlex.split, default=[], metavar="TEXT", help="options of `lynx-rt serve`")
    group.add_argument(
        "--ready-timeout", type=_positive, default=600.0, metavar="S", help="for the first answer (default: 600)"
    )


def _add_requests(group: Any) -> None:
    group.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions", help="(default: completions)"
    )
    group.add_argument(
        "--num-prompts", type=positive_int, metavar="N", help="of a point (default: 100, or all of a file)"
    )
    group.add_argument("--input-len", type=positive_int, default=128, metavar="N", help="prompt tokens (default: 128)")
    group.add_argument("--output-len", type=positive_int, default=64, metavar="N", help="tokens to make (default: 64)")
    group.add_argument(
        "--range-ratio", type=_share, default=0.0, metavar="R", help="lengths vary by this share (default: 0)"
    )
    group.add_argument(
        "--trace",
        metavar="FILE",
        help="lengths and times: Azure's CSV, Mooncake's JSONL, or drawn: azure-code, azure-conv",
    )
    group.add_argument(
        "--trace-scale", type=_positive, default=1.0, metavar="F", help="divides the trace's lengths (default: 1)"
    )
    group.add_argument("--prompts", metavar="PATH", help="JSONL that prompts are cut from (default: random tokens)")
    group.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json or its folder (default: MODEL's)")
    group.add_argument("--vocab-size", type=positive_int, metavar="N", help="of random tokens, without a tokenizer")
    group.add_argument("--temperature", type=number, default=0.0, help="(default: 0)")
    group.add_argument(
        "--no-ignore-eos", action="store_true", help="answers may end early, and have no field of vLLM's"
    )
    group.add_argument("--extra-body", type=json_object, default={}, metavar="JSON", help="fields of every request")
    group.add_argument("--seed", type=non_negative_int, default=0, help="of times, lengths and prompts (default: 0)")


def _add_times(group: Any) -> None:
    group.add_argument(
        "--request-rate",
        type=_rates,
        metavar="R,...",
        help="requests per second, inf = all at once (default: inf; the trace's times)",
    )
    group.add_argument(
        "--burstiness",
        type=_positive,
        metavar="G",
        help="shape of the gamma distribution of gaps: 1 = Poisson, less = bursts (default: 1; a drawn trace's own)",
    )
    group.add_argument(
        "--max-concurrency", type=positive_ints, metavar="N,...", help="requests in flight (default: no limit)"
    )
    group.add_argument(
        "--num-warmups", type=integer, default=4, metavar="N", help="requests before the first point (default: 4)"
    )
    group.add_argument("--timeout", type=_positive, default=3600.0, metavar="S", help="of a request (default: 3600)")


def _add_results(group: Any) -> None:
    group.add_argument(
        "--goodput",
        nargs="+",
        type=_objective,
        default=[],
        metavar="NAME:MS",
        help="objectives: ttft:200 tpot:50 e2el:5000",
    )
    group.add_argument(
        "--metric-percentiles", type=_percentiles, default=[50, 95, 99], metavar="P,...", help="(default: 50,95,99)"
    )
    group.add_argument(
        "--result-dir", metavar="DIR", help="writes a JSON file per point, with the names of vllm bench serve"
    )
    group.add_argument("--save-detailed", action="store_true", help="with every request's times and text")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    import lynx_rt
    from lynx_rt.bench.client import Target
    from lynx_rt.bench.own_server import own_server
    from lynx_rt.engine.model_path import resolve

    if args.base_url is None:
        args.model = str(resolve(args.model or lynx_rt.shipped_model(), "auto", None))
        with own_server(args.model, args.serve_args) as target:
            return asyncio.run(_sweep(args, target))
    if args.serve_args:
        raise LynxError("--serve-args are for a server that is started: leave out --base-url", "serve_args")
    return asyncio.run(_sweep(args, Target.parse(args.base_url, args.api_key)))


async def _sweep(args: argparse.Namespace, target: Target) -> int:
    from tqdm import tqdm

    from lynx_rt.bench.run import drive, first_model, plan, wait_ready
    from lynx_rt.bench.sweep import Point, measure, result_file

    entry = await first_model(target, args.ready_timeout)
    work = _workload(args, entry)
    warm = work.requests(math.inf, max(1, args.num_warmups))
    planned = plan(target, work.endpoint, work.model, warm, work.source, args.seed + 99, work.extra)
    await wait_ready(target, planned[0], args.ready_timeout)
    await drive(target, planned[: args.num_warmups], timeout_s=args.timeout)

    points = [
        (rate, concurrency, selection)
        for rate in args.request_rate or [None if args.trace else math.inf]
        for concurrency in args.max_concurrency or [None]
        for selection in args.selection or [None]
    ]
    header = _header(args, work)
    results: list[dict[str, Any]] = []
    for index, (rate, concurrency, selection) in enumerate(points):
        point = Point(rate, concurrency, selection, number=index)
        name = " ".join(str(part) for part in (selection, rate and f"{rate:g}/s", concurrency) if part is not None)
        bar = tqdm(total=len(work.arrivals), desc=name or "trace", unit="req", disable=None, leave=False)
        with bar, _cancel_on_interrupt():
            result, done = await measure(target, work, point, bar.update)
        results.append(result)
        if args.result_dir:
            folder = Path(args.result_dir)
            folder.mkdir(parents=True, exist_ok=True)
            text = result_file(result, header, done if args.save_detailed else None)
            (folder / f"{_file_name(index, result)}.json").write_text(text, encoding="utf-8")
        if done.interrupted:
            break
    report = {**header, "points": results}
    print(json.dumps(report, indent=1) if args.json else _format(args, report))
    if results[-1]["interrupted"]:
        return _INTERRUPTED
    return 0 if any(result["completed"] for result in results) else 1


@contextlib.contextmanager
def _cancel_on_interrupt() -> Iterator[None]:
    """Makes Ctrl-C cancel the task that runs, once; a second one ends the program."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    running = task

    def cancel() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        running.cancel()

    loop.add_signal_handler(signal.SIGINT, cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _workload(args: argparse.Namespace, entry: dict[str, Any]) -> Workload:
    """entry: of /v1/models."""
    import numpy as np

    from lynx_rt.bench.prompts import prompt_source
    from lynx_rt.bench.sweep import Workload
    from lynx_rt.bench.traces import FITS, Arrival, arrival_times, random_lengths, read_trace, synthesize

    rng = np.random.default_rng(args.seed)
    count = args.num_prompts or _PROMPTS
    if args.trace is None:
        lengths = [random_lengths(count, mean, args.range_ratio, rng) for mean in (args.input_len, args.output_len)]
        times = arrival_times(count, 1.0, args.burstiness or 1.0, rng)
        arrivals = [Arrival(*one) for one in zip(times, *lengths, strict=True)]
    elif args.trace in FITS:
        arrivals = synthesize(args.trace, count, rng, args.burstiness)
    else:
        if args.burstiness is not None:
            raise LynxError("--burstiness does not change the times of a trace's file", "burstiness")
        arrivals = read_trace(args.trace)[: args.num_prompts]
    extra = {"temperature": args.temperature, **({} if args.no_ignore_eos else {"ignore_eos": True}), **args.extra_body}
    tokenizer = args.tokenizer or (args.model if args.model and args.vocab_size is None else None)
    return Workload(
        args.endpoint,
        args.model_name or entry["id"],
        arrivals,
        prompt_source(tokenizer, args.vocab_size, args.prompts),
        seed=args.seed,
        trace_scale=args.trace_scale if args.trace else 1.0,
        max_tokens=entry.get("max_model_len"),
        extra=extra,
        percentiles=args.metric_percentiles,
        goodput_ms=dict(args.goodput),
        timeout_s=args.timeout,
    )


def _header(args: argparse.Namespace, work: Workload) -> dict[str, Any]:
    """Returns the names that `vllm bench serve` writes about a run, and what it was run by."""
    from lynx_rt import _C

    backend = "openai-chat" if args.endpoint == "chat" else "openai"
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": None,
        "model_id": work.model,
        "tokenizer_id": args.tokenizer or args.model,
        "burstiness": args.burstiness or 1.0,
        "trace": args.trace,
        "goodput": work.goodput_ms,
        "command": args.command_line,
        "client_cpu": _C.build_info()["cpu_model"],
    }


def _file_name(index: int, result: dict[str, Any]) -> str:
    rate = result["request_rate"]
    parts = [
        f"{index:03d}",
        f"rate{rate if rate == 'inf' else f'{rate:.3g}'}",
        f"concurrency{result['max_concurrency']}",
    ]
    return "-".join([*parts, (result["selection"] or "server").replace("/", "_").replace(":", "_")])


def _format(args: argparse.Namespace, report: dict[str, Any]) -> str:
    results = report["points"]
    trace = f", {args.trace} with lengths / {args.trace_scale:g}" if args.trace else ""
    lines = [f"{report['model_id']}: {args.endpoint}{trace}; client on {report['client_cpu']}", ""]
    header = ["selection", "req/s in", "max", "done", "failed", "req/s", *(["good/s"] if args.goodput else []), "tok/s"]
    header += ["TTFT ms", "p99", "TPOT ms", "p99", "ITL p99", "E2EL p99", "lag p99"]
    with_lynx = any(result["lynx"] for result in results)
    header += ["experts", "before", "mass", "read/token"] if with_lynx else []
    lines.append(format_table(header, [_cells(result, bool(args.goodput), with_lynx) for result in results]))
    lines += ["", "TTFT, TPOT: medians; max: requests in flight; lag: of the client's own event loop, ms"]
    for result in results:
        for error, count in result["error_counts"].items():
            lines.append(f"{count} failed: {error}")
    if results[-1]["interrupted"]:
        lines.append("interrupted: the last row has the requests that had ended; the time is that until then")
    return "\n".join([*lines, f"command: {report['command']}"])


def _cells(result: dict[str, Any], goodput: bool, with_lynx: bool) -> list[str]:
    rate = result["request_rate"]
    cells = [
        result["selection"] or "-",
        rate if rate == "inf" else f"{rate:.2f}",
        str(result["max_concurrency"] or "-"),
        str(result["completed"]),
        str(result["failed"]),
        f"{result['request_throughput']:.2f}",
        *([f"{result['request_goodput']:.2f}"] if goodput else []),
        f"{result['output_throughput']:.1f}",
    ]
    for name in ("median_ttft", "p99_ttft", "median_tpot", "p99_tpot", "p99_itl", "p99_e2el"):
        cells.append(f"{result[f'{name}_ms']:.1f}" if f"{name}_ms" in result else "-")
    cells.append(f"{result['client']['client_lag_p99_ms']:.2f}")
    if with_lynx:
        lynx = result["lynx"]
        named = (("experts_read", ".2f"), ("union_before", ".2f"), ("retained_mass", ".4f"))
        cells += [format(lynx[name], form) if lynx else "-" for name, form in named]
        cells.append(format_bytes(lynx["bytes_per_token"]) if lynx else "-")
    return cells


def _positive(text: str) -> float:
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
    return value


def _share(text: str) -> float:
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text!r}")
    return value


def _rates(text: str) -> list[float]:
    """Parses "1,2.5,inf"."""
    return [_positive(piece) for piece in text.split(",")]


def _percentiles(text: str) -> list[float]:
    """Parses "50,95,99.9"."""
    values = [number(piece) for piece in text.split(",")]
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"must be from 0 to 100, got {text!r}")
    return values


def _objective(text: str) -> tuple[str, float]:
    """Parses "tpot:50"."""
    from lynx_rt.bench.measures import GOODPUT_METRICS

    name, _, limit = text.partition(":")
    if name not in GOODPUT_METRICS:
        raise argparse.ArgumentTypeError(f"must be NAME:MS with a name of {', '.join(GOODPUT_METRICS)}, got {text!r}")
    return name, _positive(limit)
