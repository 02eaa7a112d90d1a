"""Runs the CUDA kernels on the CPU, plain and under sanitizers, in the trees of tests/cpp/build_tree.py. None of this has run on a GPU."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from build_tree import SANITIZERS, built, tsan_prefix
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow
MODES = [(copy, seed) for copy in ("lazy", "eager") for seed in (0, 1, 2, 3)]  # seed 0 is FIFO
# Test programs of the kernels, and which cases they run where: every n-th. The first of MODES runs all.
KERNELS = {
    "test_route": {"plain": 16, "asan": 30, "tsan": 60},
    "test_route_policies": {"plain": 16, "asan": 30, "tsan": 60},
    "test_route_rules": {"plain": 16, "asan": 30, "tsan": 60},
    "test_rows": {"plain": 2, "asan": 6, "tsan": 12},
    "test_gemm": {"plain": 2, "asan": 4, "tsan": 12},
    "test_experts": {"plain": 2, "asan": 4, "tsan": 12},
    "test_attention": {"plain": 4, "asan": 8, "tsan": 12},
    "test_gated_delta": {"plain": 1, "asan": 1, "tsan": 1},
    "test_qkv_post": {"plain": 1, "asan": 1, "tsan": 1},
    "test_sample": {"plain": 3, "asan": 4, "tsan": 16},
}
BUGS = re.findall(r'^    \{"(\w+)", \w+<true>', (HERE / "planted_bugs.cc").read_text(), re.MULTILINE)
# The reports that ThreadSanitizer must make, by copy mode.
RACES = [
    *((bug, copy) for bug in BUGS if bug.startswith("missing_") for copy in ("lazy", "eager")),
    ("short_wait", "lazy"),
    ("overwritten_stage", "eager"),
]


def run(command: list[str | Path], **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )


def passes(command: list[str | Path], **options: object) -> str:
    """Runs a command, which must end with 0, and returns its output."""
    done = run(command, **options)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}", pytrace=False)
    return done.stdout


def build(kind: str) -> Path:
    """Builds a kind's programs together, those of the engine for plain and asan only, and returns their folder."""
    engine = ["test_engine_emulated"] if kind != "tsan" else []
    return built(kind, "test_emulator", "planted_bugs", "test_simt", *KERNELS, *engine) / "tests" / "simt"


def execute(kind: str, name: str, *arguments: str, copy: str = "lazy", seed: int = 0) -> subprocess.CompletedProcess:
    prefix = tsan_prefix() if kind == "tsan" else ()
    environment = {**os.environ, "SIMT_COPY": copy, "SIMT_SEED": str(seed)}
    return run([*prefix, build(kind) / name, *arguments], env=environment, timeout=300)


def holds(kind: str, name: str, *arguments: str, copy: str = "lazy", seed: int = 0) -> None:
    done = execute(kind, name, *arguments, copy=copy, seed=seed)
    counts = re.search(r"(\d+) checks, (\d+) failures", done.stdout)
    if done.returncode != 0 or counts is None or int(counts[1]) == 0:
        what = f"{kind} {name}, {copy} copies, seed {seed}, ended with {done.returncode}"
        pytest.fail(f"{what}:\n{done.stdout[-4000:]}", pytrace=False)


def side_by_side(check: Callable[[Any], None], cases: Sequence[Any]) -> None:
    """Calls check(case) for every case, on all cores. The programs must have been built."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(check, cases):
            pass


# --- plain


def test_planted_bugs_are_found() -> None:
    holds("plain", "planted_bugs")


@pytest.mark.parametrize("kind", SANITIZERS)
def test_emulator(kind: str) -> None:
    holds(kind, "test_emulator")


@pytest.mark.parametrize("name", ["test_simt", *KERNELS])
def test_kernels(name: str) -> None:
    """Runs every case once, some of them in the other orders of threads and copies."""
    build("plain")

    def check(mode: tuple[str, int]) -> None:
        thinned = [str(KERNELS[name]["plain"])] if name in KERNELS and mode != MODES[0] else []
        holds("plain", name, *thinned, copy=mode[0], seed=mode[1])

    side_by_side(check, MODES)


# --- AddressSanitizer and UndefinedBehaviorSanitizer


@pytest.mark.parametrize("name", ["test_simt", *KERNELS])
def test_under_address_sanitizer(name: str) -> None:
    holds("asan", name, *([str(KERNELS[name]["asan"])] if name in KERNELS else []))


def test_address_sanitizer_finds_an_overrun() -> None:
    done = execute("asan", "planted_bugs", "shared_overrun", "bug")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stdout and "overrun_kernel" in done.stdout


def test_address_sanitizer_is_silent_about_correct_twins() -> None:
    build("asan")

    def check(bug: str) -> None:
        done = execute("asan", "planted_bugs", bug, "correct")
        assert (done.returncode, done.stdout) == (0, "ok\n"), bug

    side_by_side(check, BUGS)


# --- ThreadSanitizer: barriers order memory, nothing else does


@pytest.mark.parametrize("name", ["test_simt", *KERNELS])
def test_under_thread_sanitizer(name: str) -> None:
    build("tsan")
    tsan_prefix()

    def check(copy: str) -> None:
        holds("tsan", name, *([str(KERNELS[name]["tsan"])] if name in KERNELS else []), copy=copy, seed=copy == "eager")

    side_by_side(check, ["lazy", "eager"])


def test_thread_sanitizer_finds_races() -> None:
    build("tsan")
    tsan_prefix()

    def check(case: tuple[str, str]) -> None:
        done = execute("tsan", "planted_bugs", case[0], "bug", copy=case[1])
        assert done.returncode != 0 and "data race" in done.stdout and "planted_bugs.cc" in done.stdout, (
            case,
            done.stdout,
        )

    side_by_side(check, RACES)


def test_thread_sanitizer_is_silent_about_correct_twins() -> None:
    build("tsan")
    tsan_prefix()

    def check(case: tuple[str, str]) -> None:
        done = execute("tsan", "planted_bugs", case[0], "correct", copy=case[1])
        assert (done.returncode, done.stdout) == (0, "ok\n"), case

    side_by_side(check, [(bug, copy) for bug in BUGS for copy in ("lazy", "eager")])


# --- the engine


@pytest.mark.parametrize("copy, seed", [("lazy", 0), ("eager", 2)])
def test_engine(copy: str, seed: int) -> None:
    """The engine on the emulated backend gives what it gives on the CPU."""
    environment = {**os.environ, "SIMT_COPY": copy, "SIMT_SEED": str(seed)}
    program = build("plain") / "test_engine_emulated"
    passes([program, HERE / "tiny", "12"], env=environment, timeout=300)


def test_engine_with_experts_in_host_memory(nano_path: str) -> None:
    """lynx-nano with a part of its experts on the emulated device: the bits of all of them there."""
    passes([build("plain") / "test_engine_emulated", "--tiers", nano_path, "3"], timeout=600)


def test_engine_under_address_sanitizer() -> None:
    passes([build("asan") / "test_engine_emulated", HERE / "tiny", "12", "short"], timeout=600)


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def to_fp8(name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight in FP8 with a scale for 128 x 128."""
    scales = torch.stack(
        [torch.stack([block.abs().max() / 400 for block in rows.split(128, 1)]) for rows in values.split(128)]
    ).bfloat16()
    spread = scales.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[: values.shape[0], : values.shape[1]]
    return {name: (values / spread).to(torch.float8_e4m3fn), name + "_scale_inv": scales}


@pytest.fixture(scope="module")
def quantized_models(nano_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lynx-nano's first layer, with few tokens, in each of the formats."""
    sys.path.insert(0, str(HERE.parent / "checkpoint"))
    from nano_files import FORMATS

    formats = {name: FORMATS[name] for name in ("int4", "awq", "mxfp4", "int8")}
    folder = tmp_path_factory.mktemp("quantized")
    config = json.loads((Path(nano_path) / "config.json").read_text()) | {"num_hidden_layers": 1, "vocab_size": 64}
    weights = load_file(Path(nano_path) / "model.safetensors")
    for name, (write, quantization) in (formats | {"fp8": (to_fp8, FP8)}).items():
        tensors = {}
        for tensor, values in weights.items():
            if re.search(r"layers\.(?!0\.)", tensor):
                continue
            if tensor.endswith("_proj.weight"):
                tensors |= write(tensor, values.float())
            else:
                tensors[tensor] = values[:64] if "embed_tokens" in tensor else values
        (folder / name).mkdir()
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder


def test_engine_of_quantized_weights(quantized_models: Path) -> None:
    """Greedy tokens and log probabilities are those of decoded weights."""
    passes([build("plain") / "test_engine_emulated", "--quantized", quantized_models], timeout=300)


@pytest.mark.parametrize("part", ["families", "images"])
def test_engine_parts(part: str) -> None:
    """Runs tiny models of families that have ops of their own, and one that reads images."""
    environment = {**os.environ, "SIMT_COPY": "lazy", "SIMT_SEED": "0"}
    passes([build("plain") / "test_engine_emulated", f"--{part}", HERE / part], env=environment, timeout=300)
