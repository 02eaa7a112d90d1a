"""Measures other implementations on this machine, to compare with bench_ops in the same run: torch's copy and bf16 product, and the
experts of a layer as torch's grouped products, as a loop over experts, and as a published Triton kernel where one is given.

    python3 bench/gpu/baselines.py [--quick] [--triton-moe FILE[:FUNCTION]]

FUNCTION (fused_experts) is called as FUNCTION(x [T, H], w13 [E, 2 I, H] gate first, w2 [E, H, I], weights [T, k] float32,
ids [T, k] int32) and returns [T, H]: the leading arguments of that function in vLLM and SGLang. The file stays outside of the repository.
Prints a line of JSON per result. As in bench_ops, weights rotate through copies that the second-level cache cannot hold, routing is
uniform at random, and calls are replayed as a graph. `lists` says whether a time includes ordering the pairs by expert.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

try:
    import torch
except ImportError:
    sys.exit("baselines: needs torch; not run")

SHAPES = [  # the same as kShapes in experts.h
    ("E128 k8 H2048 I768", 128, 8, 2048, 768),
    ("E64 k8 H2048 I1024", 64, 8, 2048, 1024),
    ("E64 k6 H2048 I1408", 64, 6, 2048, 1408),
    ("E256 k8 H2048 I512", 256, 8, 2048, 512),
    ("E128 k8 H4096 I1536", 128, 8, 4096, 1536),
]
DISTINCT = 8  # routings that are used in turn


def emit(bench: str, **fields: Any) -> None:
    head = {
        "bench": bench,
        "device": torch.cuda.get_device_name(0),
        "commit": os.environ.get("LYNX_RT_COMMIT", "unknown"),
    }
    print(json.dumps({**head, **fields}), flush=True)


def time_graph(call: Callable[[int], object], count: int, quick: bool) -> dict[str, Any]:
    """Returns the microseconds of one of call(0), .., call(count - 1), by replays of a graph, or by calls that cannot be recorded."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            for i in range(count):
                call(i)
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(recorded, stream=stream):
            for i in range(count):
                call(i)
        replay: Callable[[], object] = recorded.replay
        graph = True
    except RuntimeError:
        torch.cuda.synchronize()
        graph = False

        def replay() -> None:
            for i in range(count):
                call(i)

    times: list[float] = []
    total = 0.0
    while (total < (15 if quick else 60) or len(times) < 16) and len(times) < 2000:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(9)]
        events[0].record()
        for event in events[1:]:
            replay()
            event.record()
        torch.cuda.synchronize()
        batch = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
        total += sum(batch)
        times += batch
    times = sorted(1e3 * t / count for t in times[8:])  # the first ones warm up
    return {
        "us": statistics.median(times),
        "p10_us": times[len(times) // 10],
        "p90_us": times[len(times) * 9 // 10],
        "replays": len(times),
        "graph": graph,
    }


def ceilings(quick: bool) -> float:
    """Returns the copy rate in GB/s, counting bytes read and bytes written."""
    size = (1 if quick else 4) << 30
    source = torch.randn(size // 2, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    times = time_graph(lambda _: target.copy_(source), 1, quick)
    copy = 2 * size / times["us"] / 1e3
    emit("baseline_ceiling", kind="torch copy", buffer_bytes=size, gb_per_s=copy, **times)
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    times = time_graph(lambda _: torch.matmul(a, b, out=out), 1, quick)
    emit("baseline_ceiling", kind=f"torch bf16 product {n}^3", tflop_per_s=2e-6 * n**3 / times["us"], **times)
    return copy


class Routing:
    """A routing to uniform random experts, with the pairs ordered by expert."""

    def __init__(self, rows: int, experts: int, top_k: int) -> None:
        scores = torch.randn(rows, experts, device="cuda")
        weights, ids = torch.softmax(scores, dim=1).topk(top_k, dim=1)
        self.weights = weights / weights.sum(dim=1, keepdim=True)
        self.ids = ids.to(torch.int32)
        self.order, self.offsets = self.lists(experts)
        self.active = int(self.ids.unique().numel())
        self.groups = [(e, (ids == e).nonzero()[:, 0], self.weights[ids == e]) for e in ids.unique().tolist()]

    def lists(self, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
        flat = self.ids.flatten()
        counts = torch.zeros(experts, device="cuda", dtype=torch.int32).scatter_add_(
            0, flat.long(), torch.ones_like(flat)
        )
        return flat.argsort(stable=True), counts.cumsum(0, dtype=torch.int32)


def activation(both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def loop(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, r: Routing) -> torch.Tensor:
    out = torch.zeros_like(x)
    for expert, rows, weights in r.groups:
        out.index_add_(0, rows, activation(x[rows] @ w13[expert].t()) @ w2[expert].t() * weights[:, None].to(x.dtype))
    return out


def grouped(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, r: Routing, with_lists: bool) -> torch.Tensor:
    top_k = r.ids.shape[1]
    order, offsets = r.lists(w13.shape[0]) if with_lists else (r.order, r.offsets)
    hidden = activation(torch._grouped_mm(x[order // top_k], w13.transpose(-2, -1), offs=offsets))
    partial = torch._grouped_mm(hidden, w2.transpose(-2, -1), offs=offsets)
    pairs = torch.empty_like(partial)
    pairs[order] = partial
    return (pairs.view(x.shape[0], top_k, -1) * r.weights[:, :, None]).sum(dim=1)


def load(path: str) -> Callable[..., torch.Tensor]:
    file, _, function = path.partition(":")
    spec = importlib.util.spec_from_file_location("triton_moe", file)
    assert spec is not None and spec.loader is not None, f"{file} is no Python file"
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
    spec.loader.exec_module(module)
    return getattr(module, function or "fused_experts")


def find_kinds(triton_moe: str | None) -> dict[str, tuple[bool, Callable[..., torch.Tensor]]]:
    """Returns name -> whether it orders the pairs itself, and the function of (x, w13, w2, routing)."""
    kinds: dict[str, tuple[bool, Callable[..., torch.Tensor]]] = {"torch loop": (False, loop)}
    if hasattr(torch, "_grouped_mm"):
        kinds["torch grouped"] = (False, lambda *args: grouped(*args, with_lists=False))
        kinds["torch grouped, with lists"] = (True, lambda *args: grouped(*args, with_lists=True))
    if triton_moe:
        function = load(triton_moe)
        kinds["triton"] = (True, lambda x, w13, w2, r: function(x, w13, w2, r.weights, r.ids))
    return kinds


class Layers:
    """Several copies of a layer's experts."""

    def __init__(self, num_experts: int, hidden: int, width: int) -> None:
        self.expert_bytes = 3 * hidden * width * 2
        l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        self.copies = max(1, min(4, -(-16 * l2 // (num_experts * self.expert_bytes))))
        self.w13 = torch.empty(self.copies, num_experts, 2 * width, hidden, device="cuda", dtype=torch.bfloat16)
        self.w2 = torch.empty(self.copies, num_experts, hidden, width, device="cuda", dtype=torch.bfloat16)
        self.w13.normal_(std=0.03)
        self.w2.normal_(std=0.03)

    def run(
        self, function: Callable[..., torch.Tensor], x: torch.Tensor, routings: list[Routing], i: int
    ) -> torch.Tensor:
        return function(x, self.w13[i % self.copies], self.w2[i % self.copies], routings[i % len(routings)])


def experts(quick: bool, copy_rate: float, triton_moe: str | None) -> int:
    """Prints a line per shape, number of rows and kind; returns how many failed."""
    failures = 0
    kinds = find_kinds(triton_moe)
    for name, num_experts, top_k, hidden, width in SHAPES[:1] if quick else SHAPES:
        layers = Layers(num_experts, hidden, width)
        points: dict[str, list[tuple[float, float]]] = {}
        for rows in (1, 8, 32, 128) if quick else (1, 2, 4, 8, 16, 32, 64, 128):
            x = torch.randn(rows, hidden, device="cuda", dtype=torch.bfloat16)
            routings = [Routing(rows, num_experts, top_k) for _ in range(DISTINCT)]
            active = statistics.mean(r.active for r in routings)
            want = loop(x.float(), layers.w13[0].float(), layers.w2[0].float(), routings[0])
            for kind, (with_lists, function) in kinds.items():
                fields = {"shape": name, "kind": kind, "rows": rows, "lists": with_lists, "active": active}
                try:
                    error = float((layers.run(function, x, routings, 0).float() - want).norm() / want.norm())
                    if not error < 2e-2:  # bfloat16 operands and results: 1e-3 to 1e-2
                        raise RuntimeError(f"relative error {error}")
                    call = functools.partial(layers.run, function, x, routings)
                    times = time_graph(call, 2 if kind == "torch loop" else 16, quick)
                except Exception as e:  # a library failed: the others are still measured
                    failures += 1
                    emit("baseline_experts", **fields, error=f"{type(e).__name__}: {str(e)[:300]}")
                    continue
                size = active * layers.expert_bytes
                rate = size / times["us"] / 1e3
                points.setdefault(kind, []).append((size, times["us"]))
                rates = {"bytes": size, "gb_per_s": rate, "percent_of_copy": 100 * rate / copy_rate}
                emit("baseline_experts", **fields, **times, **rates, relative_error=error)
        for kind, found in points.items():
            print_fit(name, kind, found)
    return failures


def print_fit(shape: str, kind: str, points: list[tuple[float, float]]) -> None:
    """Fits us = c0 + bytes / rate by least squares."""
    if len(points) < 3:
        return
    sizes, times = zip(*points, strict=True)
    fit = statistics.linear_regression(sizes, times)
    r2 = statistics.correlation(sizes, times) ** 2
    fields = {"c0_us": fit.intercept, "gb_per_s": 1e-3 / fit.slope, "r2": r2}
    emit("baseline_experts_fit", shape=shape, kind=kind, points=len(points), **fields)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--triton-moe", metavar="FILE[:FUNCTION]", default=os.environ.get("LYNX_RT_TRITON_MOE"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("baselines: torch sees no GPU; not run", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    with torch.no_grad():
        return 1 if experts(args.quick, ceilings(args.quick), args.triton_moe) else 0


if __name__ == "__main__":
    sys.exit(main())
