"""Two engines on a local Ray cluster under `pack` and under `spread`: experts read per token, and what clients see.

    python bench/ray_pack.py [MODEL] [--selection lynx] [--max-concurrency 12] [--num-prompts 240] [--rounds 2]

`spread` takes the engine with the fewest requests, which two engines under even load make round-robin. Policies take turns. Load is
`lynx-rt bench serve`'s: so many requests at once, prompts of the task sets, 64 tokens each. Engines write their counters to files,
because the routes of Ray's ingress answer for one engine only. Needs the extra: pip install "lynx_rt[ray]".
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve

import lynx_rt
from lynx_rt.cli.machine import measured_on
from lynx_rt.integrations import ray_serve

FOLDER = "LYNX_RT_BENCH_COUNTERS"
SEQS = 16


class CountingReplica(ray_serve.Replica):
    """Writes the sums of its decode steps to a file, four times a second."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        threading.Thread(target=self._write, daemon=True).start()

    def _write(self) -> None:
        place = Path(os.environ[FOLDER], f"{os.getpid()}.json")
        while True:
            stats = self._state.ready_engine().stats()
            active = sum(layer.active for layer in stats.layers) / len(stats.layers)
            mass = sum(layer.retained_mass for layer in stats.layers) / len(stats.layers)
            sums = {"active": active, "mass": mass, "rows": stats.decode_rows, "steps": stats.decode_steps}
            place.with_suffix(".tmp").write_text(json.dumps(sums))
            place.with_suffix(".tmp").replace(place)
            time.sleep(0.25)


def counters(folder: str) -> list[dict[str, float]]:
    time.sleep(0.6)  # the last steps are written
    return [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def load(url: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "lynx_rt",
        "bench",
        "serve",
        args.model,
        "--base-url",
        url,
        "--json",
        "--output-len",
        "64",
    ]
    command += [
        "--num-prompts",
        str(args.num_prompts),
        "--max-concurrency",
        str(args.max_concurrency),
        "--input-len",
        "48",
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    (point,) = json.loads(done.stdout)["points"]
    return dict(point)


def row(policy: str, url: str, args: argparse.Namespace, folder: str) -> str:
    options = {"max_num_seqs": SEQS, "num_threads": 1, "expert_selection": args.selection}
    serve.run(
        ray_serve.build_app(args.model, engine=options, num_replicas=2, policy=policy, actor_options={"num_cpus": 0.5})
    )
    for old in Path(folder).glob("*.json"):
        old.unlink()
    before = counters(folder)
    point = load(url, args)
    after = counters(folder)
    sums = [{name: new[name] - old[name] for name in new} for old, new in zip(before, after, strict=True)]
    rows, steps = (sum(one[name] for one in sums) for name in ("rows", "steps"))
    share = 100 * max(one["rows"] for one in sums) / rows
    active, mass = (sum(one[name] for one in sums) / rows for name in ("active", "mass"))
    serve.delete("default")
    return (
        f"| `{policy}` | {rows / steps:.1f} | {share:.0f} | {active:.2f} | {mass:.3f} | {point['output_throughput']:.0f} | "
        f"{point['median_tpot_ms']:.2f} | {point['p99_tpot_ms']:.2f} | {point['p99_ttft_ms']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=lynx_rt.shipped_model())
    parser.add_argument("--selection", default="lynx")
    parser.add_argument("--max-concurrency", type=int, default=12)
    parser.add_argument("--num-prompts", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    ray_serve.Replica = CountingReplica  # type: ignore[misc]  # build_app() makes the engines of it
    port, place = free_port(), f"/tmp/lynx_rt-bench-{os.getpid()}"  # a short path: Ray's sockets lie in it
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        ray.init(
            num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 << 20, logging_level="error",
            log_to_driver=False, _temp_dir=place, runtime_env={"env_vars": {FOLDER: folder}},
        )  # fmt: skip
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            print(
                "| policy | rows per step | of the fuller engine % | experts per token and layer | gate mass | tokens/s | TPOT p50 ms "
                "| p99 ms | TTFT p99 ms |\n|---|---|---|---|---|---|---|---|---|"
            )
            for _ in range(args.rounds):
                for policy in ("spread", "pack"):
                    print(row(policy, f"http://127.0.0.1:{port}", args, folder), flush=True)
        finally:
            serve.shutdown()
            ray.shutdown()
            shutil.rmtree(place, ignore_errors=True)
    print(f"\n{measured_on('cpu')}")


if __name__ == "__main__":
    main()
