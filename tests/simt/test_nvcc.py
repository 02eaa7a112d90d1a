"""Compiles the CUDA kernels with nvcc for every architecture and reads what ptxas and a disassembler say about them.

Skipped without nvcc (CUDACXX or on PATH); the SASS tests also without cuobjdump and nvdisasm (on PATH, or the wheels
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm). A kernel that changed its registers: the failure prints the new table.

The whole takes about 180 CPU seconds the first time. What was compiled is kept beside the builds of test_simt.py.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "backend" / "cuda"
FILES = sorted(CUDA.glob("*.cu"))
# What is compiled -> for which architectures: one front end serves three that see the same source and give the same registers.
TARGETS = {"80": ("80", "86", "89"), "90a": ("90a",), "100a": ("100a",), "120": ("120",)}
ARCHITECTURES = [name for names in TARGETS.values() for name in names]
FLAGS = ["-std=c++20", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v"]  # as csrc/backend/devices.cmake
SLACK = 8  # registers that a ceiling leaves above what was measured

# Kernels of each file (patterns of their names) and the most registers that any architecture may give them.
CEILINGS: dict[str, dict[str, int]] = {
    "attention": {
        "attention_kernel<1>": 135,
        "attention_kernel<2>": 147,
        "attention_kernel<3>": 155,
        "attention_kernel<4>": 165,
        "attention_kernel<8>": 199,
        "merge_kernel": 116,
    },
    "down": {
        "down_kernel<1>": 88,
        "down_kernel<2>": 122,
        "down_kernel<4>": 136,
        "down_kernel<8>": 224,
    },
    "elementwise": {
        "combine_kernel": 64,
        "embed_kernel": 30,
        "gather_kernel": 25,
        "norm_kernel<0, *>": 68,
        "norm_kernel<1, *>": 70,
        "norm_kernel<2, *>": 77,
        "norm_kernel<4, *>": 101,
        "round_heads_kernel": 34,
        "round_kernel": 30,
    },
    "gate_up": {
        "gate_up_kernel<1>": 88,
        "gate_up_kernel<2>": 120,
        "gate_up_kernel<4>": 136,
        "gate_up_kernel<8>": 222,
    },
    "head_linear": {
        "head_linear_kernel<1>": 88,
        "head_linear_kernel<2>": 120,
        "head_linear_kernel<4>": 136,
        "head_linear_kernel<8>": 226,
    },
    "linear": {
        "linear_kernel<1, 1>": 87,
        "linear_kernel<1, 2>": 127,
        "linear_kernel<2, 1>": 86,
        "linear_kernel<2, 2>": 114,
        "linear_kernel<2, 4>": 134,
        "linear_kernel<2, 8>": 222,
    },
    "pack": {
        "pack_kernel<(lynx_rt::DType)0>": 44,
        "pack_kernel<(lynx_rt::DType)1>": 41,
        "pack_kernel<(lynx_rt::DType)2>": 38,
        "to_float32_kernel<(lynx_rt::DType)0>": 16,
        "to_float32_kernel<(lynx_rt::DType)1>": 18,
        "to_float32_kernel<(lynx_rt::DType)2>": 18,
    },
    "qkv_post": {
        "mla_post_kernel": 48,
        "qkv_post_kernel<4>": 61,
        "qkv_post_kernel<8>": 80,
        "width_kernel": 47,
    },
    "route": {
        "route_state::route_kernel<16, Admit>": 68,
        "route_state::route_kernel<2, Admit>": 66,
        "route_state::route_kernel<4, Admit>": 68,
        "route_state::route_kernel<8, Admit>": 66,
    },
    "route_gates": {
        "route_state::route_kernel<16, route_state::AdmitByGates>": 71,
        "route_state::route_kernel<16, route_state::AdmitCover>": 72,
        "route_state::route_kernel<2, route_state::AdmitByGates>": 64,
        "route_state::route_kernel<2, route_state::AdmitCover>": 64,
        "route_state::route_kernel<4, route_state::AdmitByGates>": 66,
        "route_state::route_kernel<4, route_state::AdmitCover>": 64,
        "route_state::route_kernel<8, route_state::AdmitByGates>": 64,
        "route_state::route_kernel<8, route_state::AdmitCover>": 66,
    },
    "route_keys": {
        "keys_kernel": 48,
    },
    "route_many": {
        "lists_kernel<16>": 59,
        "lists_kernel<2>": 59,
        "lists_kernel<4>": 59,
        "lists_kernel<8>": 59,
        "places_kernel": 41,
        "rows_kernel<16>": 80,
        "rows_kernel<2>": 72,
        "rows_kernel<4>": 72,
        "rows_kernel<8>": 79,
    },
    "route_rows": {
        "route_state::route_kernel<16, route_state::ChooseByRow>": 94,
        "route_state::route_kernel<2, route_state::ChooseByRow>": 80,
        "route_state::route_kernel<4, route_state::ChooseByRow>": 80,
        "route_state::route_kernel<8, route_state::ChooseByRow>": 88,
    },
    "router": {
        "router_kernel<float, 4, 2>": 56,
        "router_kernel<float, 8, 8>": 156,
        "router_kernel<unsigned short, 4, 2>": 54,
        "router_kernel<unsigned short, 8, 8>": 160,
    },
    "runtime": {
        "probe_kernel": 12,
    },
    "sample": {
        "sample_kernel": 88,
    },
}
STACK: dict[str, int] = {}  # kernel -> bytes of stack frame that it may have; all others: 0
# Kernels whose SASS must have the tensor core's instruction and 16-byte loads.
MATRIX_KERNELS = {"gate_up", "down", "head_linear", "linear"}


class Usage(NamedTuple):
    """What ptxas reports about one function on one architecture."""

    registers: int | None  # None: not a kernel, but a function that was not inlined
    stack: int
    spills: int


def demangle(name: str) -> str:
    """Name and template arguments of a function, without namespaces and parameters."""
    done = (
        subprocess.run(["c++filt", name], capture_output=True, text=True, check=False)
        if shutil.which("c++filt")
        else None
    )
    text = done.stdout.strip() if done and done.returncode == 0 else name
    text = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|lynx_rt::cuda::", "", text.removeprefix("void "))
    depth = 0
    for at, character in enumerate(text):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return text[:at]
    return text


def parse(output: str) -> dict[str, dict[str, Usage]]:
    """architecture -> function -> usage, from the output of nvcc -Xptxas -v."""
    found: dict[str, dict[str, Usage]] = {}
    architecture = entry = function = ""
    for line in output.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", line):
            entry, architecture = match.groups()
        elif match := re.search(r"Function properties for (\S+)", line):
            function = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, match.groups())
            found.setdefault(architecture, {})[demangle(function)] = Usage(None, stack, stores + loads)
        elif match := re.search(r"Used (\d+) registers", line):
            kernels = found[architecture]
            kernels[demangle(entry)] = kernels[demangle(entry)]._replace(registers=int(match[1]))
    return found


def nvcc() -> str:
    path = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    if path is None:
        pytest.skip("needs nvcc: CUDACXX, or on PATH")
    return path


def compile_file(compiler: str, file: Path, output: Path) -> str:
    """What nvcc prints when it compiles a file for every architecture, with warnings as errors. An output *.fatbin has the
    kernels only, which takes a third less time: their launchers are C++ that tests/simt compiles."""
    targets = [
        f"-gencode=arch=compute_{ptx},code=[{','.join(f'sm_{n}' for n in names)}]" for ptx, names in TARGETS.items()
    ]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    what = "-fatbin" if output.suffix == ".fatbin" else "-c"
    command = [compiler, *FLAGS, *includes, *targets, what, str(file), "-o", str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}", pytrace=False)
    return done.stdout


class Compiled(NamedTuple):
    output: str
    file: Path


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[dict[Path, Future]]:
    """The files that this run's tests ask for, a compiler per core, longest first."""
    compiler = nvcc()
    folder = Path(os.environ.get("LYNX_RT_SIMT_BUILD_DIR") or ROOT / "build" / "simt") / "nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted(file for file in (ROOT / "csrc").rglob("*") if file.suffix in (".h", ".cuh"))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    common = hashlib.sha256(repr((FLAGS, TARGETS, version, [file.read_bytes() for file in headers])).encode())
    wanted = {item.callspec.params.get("file") for item in request.session.items if hasattr(item, "callspec")}

    def work(file: Path) -> Compiled:
        key = common.copy()
        key.update(file.read_bytes())
        suffix = ".o" if file.stem == "runtime" else ".fatbin"
        target = folder / f"{file.stem}-{key.hexdigest()[:16]}{suffix}"
        output = target.with_suffix(".txt")  # there once the compilation has ended well
        if not output.exists():
            for old in folder.glob(f"{file.stem}-*"):
                old.unlink()
            output.write_text(compile_file(compiler, file, target))
        return Compiled(output.read_text(), target)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        files = sorted(wanted.intersection(FILES), key=lambda file: file.stat().st_size, reverse=True)
        yield {file: pool.submit(work, file) for file in files}


def table(file: Path, usage: dict[str, dict[str, Usage]]) -> dict[str, int]:
    """The entry of CEILINGS that fits what was measured."""
    most: dict[str, int] = {}
    for kernels in usage.values():
        for name, kernel in kernels.items():
            most[name] = max(most.get(name, 0), kernel.registers or 0)
    return {name: min(registers + SLACK, 255) for name, registers in sorted(most.items())}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_kernels_stay_in_registers(file: Path, compiled: dict[Path, Future]) -> None:
    output = compiled[file].result().output
    usage = parse(output)
    assert sorted(usage) == sorted(ARCHITECTURES), output
    ceilings = CEILINGS.get(file.stem, {})
    names = {name for kernels in usage.values() for name in kernels}
    problems = [
        f"{pattern}: no such kernel" for pattern in ceilings if not any(fnmatchcase(name, pattern) for name in names)
    ]
    for name in sorted(names):
        fitting = [ceiling for pattern, ceiling in ceilings.items() if fnmatchcase(name, pattern)]
        if not fitting:
            problems.append(f"{name}: not in CEILINGS")
        for architecture, kernels in usage.items():
            kernel = kernels.get(name, Usage(0, 0, 0))
            where = f"{name} on sm_{architecture}"
            if kernel.registers is None:
                problems.append(f"{where}: a function that was not inlined")
            elif fitting and kernel.registers > fitting[0]:
                problems.append(f"{where}: {kernel.registers} registers, the ceiling is {fitting[0]}")
            if kernel.spills or kernel.stack > STACK.get(name, 0):
                problems.append(f"{where}: {kernel.spills} bytes of spills, stack frame of {kernel.stack} bytes")
    if problems:
        rows = "\n".join(f'        "{name}": {ceiling},' for name, ceiling in table(file, usage).items())
        pytest.fail(
            "\n".join(problems) + f'\nmeasured, plus {SLACK}:\n    "{file.stem}": {{\n{rows}\n    }},', pytrace=False
        )


# --- what the disassembler sees


@pytest.fixture(scope="module")
def cuobjdump() -> tuple[str, dict[str, str]]:
    """The program, and an environment in which it finds nvdisasm."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    if importlib.util.find_spec("nvidia"):
        for place in importlib.util.find_spec("nvidia").submodule_search_locations or []:
            folders += map(str, Path(place).glob("cu*/bin"))
    path = os.pathsep.join(folders)
    program = shutil.which("cuobjdump", path=path)
    if program is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("needs cuobjdump and nvdisasm: wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, or on PATH")
    return program, {**os.environ, "PATH": path}


def disassemble(cuobjdump: tuple[str, dict[str, str]], file: Path, architecture: str) -> dict[str, list[str]]:
    """kernel -> its instructions"""
    program, environment = cuobjdump
    done = subprocess.run(
        [program, "-sass", "-arch", f"sm_{architecture}", str(file)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    kernels: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            instructions = kernels.setdefault(demangle(match[1]), [])
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line):
            instructions.append(match[1])
    return kernels


@pytest.mark.parametrize("file", [file for file in FILES if file.stem in MATRIX_KERNELS], ids=lambda file: file.name)
def test_instructions(file: Path, compiled: dict[Path, Future], cuobjdump: tuple[str, dict[str, str]]) -> None:
    """Weights come by 16-byte loads, the tensor core multiplies, and nothing lives in local memory."""
    kernels = disassemble(cuobjdump, compiled[file].result().file, "90a")
    assert kernels and all(kernels.values())
    for name, instructions in kernels.items():
        assert any(i.startswith("HMMA.16816.F32.BF16") for i in instructions), f"{name}: no HMMA"
        assert any(i.startswith("LDG.E") and i.endswith(".128") for i in instructions), f"{name}: no 16-byte loads"
        local = {i for i in instructions if i.startswith(("LDL", "STL"))}
        assert not local, f"{name}: local memory, {sorted(local)}"


# --- the wrappers


def wrappers(header: Path) -> set[str]:
    """Names of the functions of a ptx.cuh."""
    function = r"^(?!struct)(?:__device__ __forceinline__ |inline )?(?:unsigned )?\w+\*? (\w+)\("
    return set(re.findall(function, header.read_text(), re.MULTILINE))


def test_every_wrapper_is_emulated() -> None:
    real, emulated = (
        wrappers(folder / "backend" / "cuda" / "ptx.cuh") for folder in (ROOT / "csrc", ROOT / "tests" / "simt")
    )
    assert len(real) > 30 and real <= emulated, sorted(real - emulated)


def test_nvcc_compiles_every_wrapper(tmp_path: Path) -> None:
    """PTX that no kernel uses yet is assembled as well."""
    unused = {name for name in wrappers(CUDA / "ptx.cuh") if not re.search(rf"\b{name}\b[<(]", WRAPPERS)}
    assert not unused, f"add {sorted(unused)} to WRAPPERS"
    source = tmp_path / "wrappers.cu"
    source.write_text(WRAPPERS)
    compile_file(nvcc(), source, tmp_path / "wrappers.o")


WRAPPERS = """
#include "backend/cuda/launch.h"
#include "backend/cuda/ptx.cuh"
using namespace lynx_rt::cuda;
__global__ void use(const uint4* in, float* out, uint32_t* counts) {
  grid_wait();
  grid_launch_dependents();
  copy_async_16(dynamic_shared() + 16 * threadIdx.x, in + threadIdx.x);
  copy_async_16(dynamic_shared() + 16 * threadIdx.x + 4096, in + threadIdx.x, 8);
  copy_commit();
  copy_wait<1>();
  copy_wait<0>();
  sync_block();
  sync_named(1 + warp_id() / 2, 64);
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
  const Words4 once = load_once(in + v % 64), again = load_16(in + once.x % 64);
  v += once.y ^ again.z;
  atomic_or(counts, v);
  atomic_min(counts + 1, uint32_t(count_bits(v)));
  atomic_add(counts + 2, uint32_t(lowest_bit(v | 1)));
  v += atomic_fetch_add(counts + 3, to_bf16x2(c[0], c[1]) + to_bf16(c[2]));
  out[threadIdx.x] = bits_float(float_bits(c[0])) + c[1] + c[2] + float(shuffle_xor(kFullWarp, double(c[3]), 1)) +
                     fast_exp(from_bf16(uint16_t(v)));
}
void go(const uint4* in, float* out, uint32_t* counts, Stream stream) {
  launch(use, 1, 64, 64 * 1024, stream, in, out, counts);
}
"""
