"""Runs the CUDA kernels on the CPU, plain and under sanitizers, and compiles them with nvcc where there is one.

The trees are LYNX_RT_SIMT_BUILD_DIR (or build/simt in the repository), one folder per build: kept, so that a second run
compiles only what changed. None of this has run on a GPU.
"""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc" / "backend" / "cuda"
SANITIZERS = {"plain": "", "asan": "address,undefined", "tsan": "thread"}
MODES = [(copy, seed) for copy in ("lazy", "eager") for seed in (0, 1, 2, 3)]  # seed 0 is FIFO
BUGS = re.findall(r'^    \{"(\w+)", \w+<true>', (HERE / "planted_bugs.cc").read_text(), re.MULTILINE)
# What ThreadSanitizer must report, in which copy mode.
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
    """The output of a command, which must end with 0."""
    done = run(command, **options)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}", pytrace=False)
    return done.stdout


@functools.cache
def build(kind: str) -> Path:
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} on PATH")
    tree = Path(os.environ.get("LYNX_RT_SIMT_BUILD_DIR") or ROOT / "build" / "simt") / kind
    generator = ["-G", "Ninja"] if shutil.which("ninja") and not (tree / "CMakeCache.txt").exists() else []
    passes(["cmake", "-S", HERE, "-B", tree, f"-DSIMT_SANITIZE={SANITIZERS[kind]}", *generator])
    passes(["cmake", "--build", tree, "--parallel", str(len(os.sched_getaffinity(0)))])
    return tree


@functools.cache
def tsan_prefix() -> tuple[str, ...]:
    """What to put before a command of the tsan build so that it starts: some kernels lay out memory as it cannot use."""
    command = [build("tsan") / "planted_bugs", BUGS[0], "correct"]
    prefixes: list[tuple[str, ...]] = [()]
    if shutil.which("setarch"):
        prefixes.append(("setarch", "-R"))
    for prefix in prefixes:
        if (done := run([*prefix, *command])).returncode == 0:
            return prefix
    pytest.skip(f"ThreadSanitizer does not start here: {done.stdout[:200]}")


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


# --- plain


@pytest.mark.parametrize("copy, seed", MODES)
def test_wrappers(copy: str, seed: int) -> None:
    holds("plain", "test_simt", copy=copy, seed=seed)


def test_planted_bugs_are_found() -> None:
    holds("plain", "planted_bugs")


@pytest.mark.parametrize("copy, seed", MODES)
def test_route(copy: str, seed: int) -> None:
    """All cases once, every eighth in the other orders of threads."""
    holds("plain", "test_route", "1" if (copy, seed) == MODES[0] else "8", copy=copy, seed=seed)


# --- AddressSanitizer and UndefinedBehaviorSanitizer


@pytest.mark.parametrize("name, arguments", [("test_simt", []), ("test_route", ["6"])])
def test_under_address_sanitizer(name: str, arguments: list[str]) -> None:
    holds("asan", name, *arguments)


def test_address_sanitizer_finds_an_overrun() -> None:
    done = execute("asan", "planted_bugs", "shared_overrun", "bug")
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stdout and "overrun_kernel" in done.stdout


@pytest.mark.parametrize("bug", BUGS)
def test_address_sanitizer_is_silent_about_the_correct_twin(bug: str) -> None:
    done = execute("asan", "planted_bugs", bug, "correct")
    assert (done.returncode, done.stdout) == (0, "ok\n")


# --- ThreadSanitizer: barriers order memory, nothing else does


@pytest.mark.parametrize("copy", ["lazy", "eager"])
@pytest.mark.parametrize("name, arguments", [("test_simt", []), ("test_route", ["24"])])
def test_under_thread_sanitizer(name: str, arguments: list[str], copy: str) -> None:
    holds("tsan", name, *arguments, copy=copy, seed=copy == "eager")


@pytest.mark.parametrize("bug, copy", RACES)
def test_thread_sanitizer_finds_races(bug: str, copy: str) -> None:
    done = execute("tsan", "planted_bugs", bug, "bug", copy=copy)
    assert done.returncode != 0 and "data race" in done.stdout and "planted_bugs.cc" in done.stdout, done.stdout


@pytest.mark.parametrize("copy", ["lazy", "eager"])
@pytest.mark.parametrize("bug", BUGS)
def test_thread_sanitizer_is_silent_about_the_correct_twin(bug: str, copy: str) -> None:
    done = execute("tsan", "planted_bugs", bug, "correct", copy=copy)
    assert (done.returncode, done.stdout) == (0, "ok\n")


# --- nvcc


def nvcc(file: Path, output: Path) -> str:
    """What nvcc prints when it compiles a file for two architectures with warnings as errors."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on PATH")
    flags = ["-std=c++20", "-Werror", "all-warnings", "-Xptxas", "-v"]
    flags += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ("80", "90a")]
    return passes(["nvcc", *flags, *targets, "-c", file, "-o", output])


@pytest.mark.parametrize("file", sorted(CUDA.glob("*.cu")), ids=lambda file: file.name)
def test_nvcc_compiles_without_spills(file: Path, tmp_path: Path) -> None:
    output = nvcc(file, tmp_path / "kernel.o")
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", output)
    assert spills, output
    assert all(counts == ("0", "0") for counts in spills), output


def test_nvcc_compiles_every_wrapper(tmp_path: Path) -> None:
    """PTX that no kernel uses yet is assembled as well."""
    source = tmp_path / "wrappers.cu"
    source.write_text(WRAPPERS)
    nvcc(source, tmp_path / "wrappers.o")


WRAPPERS = """
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.cuh"
using namespace lynx_rt::cuda;
__global__ void use(const uint4* in, float* out, uint32_t* counts) {
  grid_wait();
  grid_launch_dependents();
  copy_async_16(dynamic_shared() + 16 * threadIdx.x, in + threadIdx.x);
  copy_commit();
  copy_wait<0>();
  sync_block();
  sync_named(1, 64);
  uint32_t a[4], b[4];
  load_matrix_x4(a, dynamic_shared() + 16 * lane_id());
  load_matrix_x4_transposed(b, dynamic_shared() + 16 * lane_id());
  float c[4] = {};
  const uint32_t half[2] = {b[0], b[1]};
  mma_bf16(c, a, half);
  sync_warp();
  uint32_t v = match_any(kFullWarp, a[0]) + reduce_add(kFullWarp, a[1]) + reduce_max(kFullWarp, a[2]);
  v += ballot(kFullWarp, a[3] & 1);
  v += reduce_min(kFullWarp, shuffle(kFullWarp, v, 3)) + shuffle_up(kFullWarp, v, 1) + shuffle_down(kFullWarp, v, 1);
  atomic_or(counts, v);
  atomic_min(counts + 1, uint32_t(count_bits(v)));
  atomic_add(counts + 2, uint32_t(lowest_bit(v | 1)));
  out[threadIdx.x] = bits_float(float_bits(c[0])) + c[1] + c[2] + float(shuffle_xor(kFullWarp, double(c[3]), 1));
}
void go(const uint4* in, float* out, uint32_t* counts, Stream stream) {
  launch(use, 1, 64, 64 * 1024, stream, in, out, counts);
}
"""
