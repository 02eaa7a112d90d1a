"""`lynx-rt bench decode`: time per decode step by batch size and expert selection, beside the memory's bandwidth.

Every step decodes one token, greedily, for each of B sequences that began with random tokens. The policies take turns
within a batch size, a few steps at a time, so that they share the machine's noise and the growth of the context. Bytes
are what the steps had to read: weights and KV.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lynx_rt.cli import bench_serve
from lynx_rt.cli.machine import available_memory_bytes, cpu_threads, measured_on
from lynx_rt.cli.options import (
    add_engine_options,
    add_model,
    format_bytes,
    format_table,
    integer,
    model_folder,
    positive_int,
    positive_ints,
    selections,
)
from lynx_rt.engine.outputs import LayerStats, layer_mean

_TURN = 4  # steps of one policy before the next policy's turn
_WARMUP = 4  # untimed decode steps per batch size
_BANDWIDTH_BYTES = 1 << 29  # large against any cache
_ROWS_PER_STEP = 2048  # rows of a prefill step


@dataclass
class Row:
    """Results of one batch size under one policy. Means are per decode step and layer."""

    batch: int
    selection: str
    steps: int = 0
    median_ms: float = 0.0
    p10_ms: float = 0.0
    p90_ms: float = 0.0
    mean_ms: float = 0.0  # sum of the ops and of the time outside of them
    tokens_per_s: float = 0.0  # at the median step
    bytes_per_step: float = 0.0
    gb_per_s: float = 0.0
    read_gb_per_s: float | None = None  # median rate of plain reading, measured between the turns; None on a device
    percent_of_read: float | None = None
    union_before: float = 0.0  # experts that the model's own routing would have read
    active: float = 0.0  # experts that were read
    retained_mass: float = 0.0
    ops: dict[str, dict[str, float]] = field(default_factory=dict)  # name -> ms and bytes per step


@dataclass
class _Tally:
    """Sums over the turns of one policy."""

    times: list[float] = field(default_factory=list)
    read_gb_s: list[float] = field(default_factory=list)  # one per turn
    bytes_read: int = 0
    layers: list[LayerStats] = field(default_factory=list)  # of all turns
    ops: dict[str, list[float]] = field(default_factory=dict)  # name -> [seconds, bytes]

    def add(self, stats: dict[str, Any]) -> None:
        self.bytes_read += stats["bytes_read"]
        self.layers += [LayerStats(**layer) for layer in stats["layers"]]
        for op in stats["ops"]:
            sums = self.ops.setdefault(op["name"], [0.0, 0.0])
            sums[0] += op["seconds"]
            sums[1] += op["bytes"]

    def row(self, batch: int, selection: str) -> Row:
        ordered, count = sorted(self.times), len(self.times)
        median, p10, p90 = (ordered[round(q * (count - 1))] for q in (0.5, 0.1, 0.9))
        return Row(
            batch,
            selection,
            steps=count,
            median_ms=median * 1e3,
            p10_ms=p10 * 1e3,
            p90_ms=p90 * 1e3,
            mean_ms=statistics.fmean(self.times) * 1e3,
            tokens_per_s=batch / median,
            bytes_per_step=self.bytes_read / count,
            gb_per_s=(gb_per_s := self.bytes_read / count / median / 1e9),
            read_gb_per_s=(read := statistics.median(self.read_gb_s) if self.read_gb_s else None),
            percent_of_read=100 * gb_per_s / read if read else None,
            union_before=layer_mean(self.layers, "union_before", "steps"),
            active=layer_mean(self.layers, "active", "steps"),
            retained_mass=layer_mean(self.layers, "retained_mass", "rows"),
            ops={name: {"ms": s / count * 1e3, "bytes": b / count} for name, (s, b) in self.ops.items()},
        )


def add_command(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure speed", description="Measure speed.")
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    decode = kinds.add_parser(
        "decode", help="decode steps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(decode)
    decode.add_argument("--batch", type=positive_ints, default=[1, 8, 32], help="batch sizes (default: 1,8,32)")
    decode.add_argument("--selection", type=selections, default=["topk", "lynx"], help="policies (default: topk,lynx)")
    decode.add_argument("--steps", type=positive_int, default=64, help="timed steps per policy (default: 64)")
    decode.add_argument("--context", type=positive_int, default=128, help="prompt tokens per sequence (default: 128)")
    decode.add_argument("--seed", type=integer, default=0, help="of the prompts (default: 0)")
    decode.add_argument(
        "--load-format",
        choices=("auto", "safetensors", "dummy"),
        default="auto",
        help="dummy = made-up weights; MODEL then needs a config.json alone (default: auto)",
    )
    decode.add_argument("--ops", action="store_true", help="also show the time of each op")
    add_engine_options(decode)
    decode.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    decode.set_defaults(run=run)
    bench_serve.add_command(kinds)


def run(args: argparse.Namespace) -> int:
    from lynx_rt import _C, ValidationError

    args.model = model_folder(args)
    threads = cpu_threads(args.num_threads)["num_threads"]
    length = args.context + _decode_tokens(args)
    start = time.perf_counter()
    core = _C.Engine(
        args.model,
        device=args.device,
        dtype=args.dtype,
        load_format=args.load_format,
        quantization=args.quantization,
        quantization_cache=args.quantization_cache or "",
        activations=args.activations,
        memory=args.memory or "",
        expert_file=args.expert_file or "",
        expert_memory=args.expert_memory or "",
        expert_policy=args.expert_policy,
        expert_prefetch=args.expert_prefetch,
        io_timeout_s=args.io_timeout or 0,
        admission=args.admission,
        num_threads=args.num_threads or 0,
        max_num_seqs=max(args.batch),
        max_num_batched_tokens=max(_ROWS_PER_STEP, *args.batch),
        max_model_len=length,
        enable_prefix_caching=False,
        seed=args.seed,
    )
    ready_s = time.perf_counter() - start
    try:
        info = core.model_info()
        if info["max_model_len"] < length:
            raise ValidationError(
                f"--context {args.context} and the steps of all policies need {length} tokens, but the model or its KV "
                f"cache takes {info['max_model_len']}; use fewer --steps or a shorter --context",
                "steps",
            )
        # The probe reads the host's memory; bench/gpu measures the rate of a device's.
        on_host = info["device"].startswith("cpu")
        probe = _C.BandwidthProbe(threads, min(_BANDWIDTH_BYTES, available_memory_bytes() // 4)) if on_host else None
        rows = [row for batch in args.batch for row in _measure(core, probe, batch, args, info["vocab_size"])]
    finally:
        core.close()
    report = {
        "command": args.command_line,
        "measured_on": measured_on(info["device"]),
        "model": args.model,
        "model_info": info,
        "build": _C.build_info(),
        "threads": threads,
        "ready_s": ready_s,
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(report, indent=1) if args.json else _format(report, rows, args.ops))
    return 0


def _decode_tokens(args: argparse.Namespace) -> int:
    """Returns the tokens that the oldest sequence of a batch generates: during the others' prefill, in warm-up, and timed."""
    prefill_steps = 2 + max(args.batch) * args.context // (_ROWS_PER_STEP // 2)
    return int(prefill_steps + _WARMUP + args.steps * len(args.selection) + 1)


def _measure(core: Any, probe: Any, batch: int, args: argparse.Namespace, vocab_size: int) -> list[Row]:
    """Returns one row per policy. The rate of reading is measured once per turn, under the same conditions as the steps."""
    generator = random.Random(args.seed)
    prompts = [[generator.randrange(vocab_size) for _ in range(args.context)] for _ in range(batch)]
    ids = start_sequences(core, prompts, _decode_tokens(args))
    for _ in range(_WARMUP):
        core.step()
    tallies = {selection: _Tally() for selection in args.selection}
    for selection, times, stats in timed_turns(core, args.selection, batch, args.steps):
        tally = tallies[selection]
        tally.times += times
        if probe is not None:
            tally.read_gb_s.append(probe.measure())
        tally.add(stats)
    for number in ids:
        core.abort(number)
    return [tally.row(batch, selection) for selection, tally in tallies.items()]


def timed_turns(
    core: Any, policies: Iterable[str], batch: int, steps: int
) -> Iterator[tuple[str, list[float], dict[str, Any]]]:
    """Runs `steps` steps under each policy, a few at a time in turn. Yields a turn's policy, the seconds of its steps, and their statistics.
    Raises RuntimeError where the steps do not decode `batch` rows alone."""
    policies = list(dict.fromkeys(policies))
    for done in range(0, steps, _TURN):
        turn = min(_TURN, steps - done)
        for policy in policies:
            core.set_expert_selection(policy)
            core.reset_stats()
            times = []
            for _ in range(turn):
                start = time.perf_counter()
                core.step()
                times.append(time.perf_counter() - start)
            stats = core.stats()
            if stats["decode_rows"] != turn * batch:
                raise RuntimeError(f"expected {turn} decode steps of {batch} rows, got {stats['decode_rows']} rows")
            yield policy, times, stats


def start_sequences(core: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[int]:
    """Adds a sequence for each prompt and runs steps until each has a token. Returns their numbers. Raises LynxError where one fails."""
    from lynx_rt import _C, LynxError

    params = _C.SamplingParams()
    params.temperature, params.ignore_eos, params.max_tokens = 0.0, True, max_tokens
    ids = [core.add_request(prompt, params) for prompt in prompts]
    waiting = set(ids)
    while waiting:
        for output in core.step():
            if output.error:
                raise LynxError(output.error)
            if output.token_ids:
                waiting.discard(output.request_id)
    return ids


def _format(report: dict[str, Any], rows: list[Row], with_ops: bool) -> str:
    info = report["model_info"]
    lines = [
        f"{report['model']}: {info['model_type']}, {info['dtype']}, {info['num_experts']} experts, "
        f"top-{info['num_experts_per_tok']}, {format_bytes(info['weight_bytes'])} of weights",
        f"{report['measured_on']}; ready in {report['ready_s']:.2f} s",
        "read = plain reading of memory, measured between the steps",
        "",
    ]
    header = ["selection", "batch", "ms/step", "p10", "p90", "tok/s", "bytes/step", "GB/s", "read", "%", "experts"]
    header += ["before", "mass"]
    lines.append(format_table(header, [_cells(row) for row in rows]))
    if with_ops and info["device"].startswith("cpu"):  # a device's ops return once they are queued
        for row in rows:
            title = f"{row.selection}, batch {row.batch}"
            lines += [
                "",
                format_table([title, "ms/step", "% of step", "bytes/step", "GB/s", "% of read"], _op_cells(row)),
            ]
    return "\n".join([*lines, "", f"command: {report['command']}"])


def _op_cells(row: Row) -> list[tuple[str, ...]]:
    """Returns the ops' shares of a mean step, the longest first. The rest is time of the scheduler, the batch and Python."""
    outside = row.mean_ms - sum(op["ms"] for op in row.ops.values())
    ops = {**row.ops, "outside the ops": {"ms": outside, "bytes": 0.0}}
    cells: list[tuple[str, ...]] = []
    for name, op in sorted(ops.items(), key=lambda item: -item[1]["ms"]):
        if op["ms"] == 0:
            continue
        rate = op["bytes"] / op["ms"] / 1e6
        of_read = f"{100 * rate / row.read_gb_per_s:.0f}" if row.read_gb_per_s and op["bytes"] else "-"
        share = f"{100 * op['ms'] / row.mean_ms:.1f}"
        cells.append(
            (name, f"{op['ms']:.3f}", share, format_bytes(op["bytes"]), f"{rate:.1f}" if rate else "-", of_read)
        )
    return cells


def _cells(row: Row) -> list[str]:
    return [
        row.selection,
        str(row.batch),
        f"{row.median_ms:.3f}",
        f"{row.p10_ms:.3f}",
        f"{row.p90_ms:.3f}",
        f"{row.tokens_per_s:.1f}",
        format_bytes(row.bytes_per_step),
        f"{row.gb_per_s:.2f}",
        "-" if row.read_gb_per_s is None else f"{row.read_gb_per_s:.2f}",
        "-" if row.percent_of_read is None else f"{row.percent_of_read:.1f}",
        f"{row.active:.2f}",
        f"{row.union_before:.2f}",
        f"{row.retained_mass:.4f}",
    ]
