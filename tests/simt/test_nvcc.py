"""Compiles the CUDA kernels with nvcc for every architecture and reads what ptxas says about them. Where a kernel's registers have
changed, the failure prints the new table. test_sass.py reads the instructions.
"""

import re
from concurrent.futures import Future
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest
from nvcc_build import ALL_TARGETS, CUDA, FILES, ROOT, TARGETS, compile_file, demangle, nvcc

pytestmark = pytest.mark.slow

SLACK = 8  # registers that a ceiling leaves above what was measured

GROUPS = 128  # kernels for isolation groups: as many as 512 threads can have

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
    "combine": {
        "scale_kernel": 26,
        "combine_kernel": 64,
    },
    "down": {
        "down_kernel<16, 1>": 88,
        "down_kernel<16, 2>": 122,
        "down_kernel<16, 4>": 136,
        "down_kernel<16, 8>": 222,
        "down_kernel<4, 1>": 136,
        "down_kernel<4, 2>": 136,
        "down_kernel<4, 4>": 136,
        "down_kernel<4, 8>": 255,
        "down_kernel<8, 1>": 134,
        "down_kernel<8, 2>": 130,
        "down_kernel<8, 4>": 176,
        "down_kernel<8, 8>": 250,
    },
    "gated_delta": {
        "conv_kernel<16>": 172,
        "conv_kernel<4>": 74,
        "delta_kernel<32, (Recurrence)0>": 115,
        "delta_kernel<32, (Recurrence)1>": 132,
        "delta_kernel<32, (Recurrence)2>": 122,
        "delta_kernel<64, (Recurrence)0>": 207,
        "delta_kernel<64, (Recurrence)1>": 255,
        "delta_kernel<64, (Recurrence)2>": 196,
        "delta_kernel<8, (Recurrence)0>": 64,
        "delta_kernel<8, (Recurrence)1>": 64,
        "delta_kernel<8, (Recurrence)2>": 71,
        "norm_kernel": 48,
    },
    "gather": {
        "embed_kernel": 30,
        "gather_kernel": 25,
        "set_rows_kernel": 27,
    },
    "gate_up": {
        "gate_up_kernel<16, 1, 1>": 76,
        "gate_up_kernel<16, 1, 2>": 88,
        "gate_up_kernel<16, 2, 1>": 104,
        "gate_up_kernel<16, 2, 2>": 124,
        "gate_up_kernel<16, 4, 1>": 122,
        "gate_up_kernel<16, 4, 2>": 136,
        "gate_up_kernel<16, 8, 1>": 194,
        "gate_up_kernel<16, 8, 2>": 220,
        "gate_up_kernel<4, 1, 1>": 128,
        "gate_up_kernel<4, 1, 2>": 136,
        "gate_up_kernel<4, 2, 1>": 124,
        "gate_up_kernel<4, 2, 2>": 135,
        "gate_up_kernel<4, 4, 1>": 136,
        "gate_up_kernel<4, 4, 2>": 136,
        "gate_up_kernel<4, 8, 1>": 220,
        "gate_up_kernel<4, 8, 2>": 255,
        "gate_up_kernel<8, 1, 1>": 112,
        "gate_up_kernel<8, 1, 2>": 136,
        "gate_up_kernel<8, 2, 1>": 115,
        "gate_up_kernel<8, 2, 2>": 130,
        "gate_up_kernel<8, 4, 1>": 127,
        "gate_up_kernel<8, 4, 2>": 176,
        "gate_up_kernel<8, 8, 1>": 218,
        "gate_up_kernel<8, 8, 2>": 250,
    },
    "head_linear": {
        "head_linear_kernel<1>": 88,
        "head_linear_kernel<2>": 120,
        "head_linear_kernel<4>": 136,
        "head_linear_kernel<8>": 226,
    },
    "linear": {
        "linear_kernel<16, 1, 1>": 87,
        "linear_kernel<16, 1, 2>": 130,
        "linear_kernel<16, 1, 4>": 134,
        "linear_kernel<16, 2, 1>": 85,
        "linear_kernel<16, 2, 2>": 114,
        "linear_kernel<16, 2, 4>": 136,
        "linear_kernel<16, 2, 8>": 226,
        "linear_kernel<4, 1, 1>": 122,
        "linear_kernel<4, 2, 1>": 136,
        "linear_kernel<4, 2, 2>": 129,
        "linear_kernel<4, 2, 4>": 136,
        "linear_kernel<4, 2, 8>": 249,
        "linear_kernel<8, 1, 1>": 108,
        "linear_kernel<8, 2, 1>": 134,
        "linear_kernel<8, 2, 2>": 134,
        "linear_kernel<8, 2, 4>": 136,
        "linear_kernel<8, 2, 8>": 250,
    },
    "mamba2": {
        "conv_kernel<16, false>": 88,
        "conv_kernel<16, true>": 88,
        "conv_kernel<4, false>": 48,
        "conv_kernel<4, true>": 48,
        "dt_kernel": 30,
        "norm_kernel": 38,
    },
    "norm": {
        "norm_kernel<0, *>": 68,
        "norm_kernel<1, *>": 70,
        "norm_kernel<2, *>": 77,
        "norm_kernel<4, *>": 101,
    },
    "pack": {
        "pack_kernel<(lynx_rt::DType)0>": 44,
        "pack_kernel<(lynx_rt::DType)1>": 41,
        "pack_kernel<(lynx_rt::DType)2>": 38,
        "to_float32_kernel<(lynx_rt::DType)0>": 16,
        "to_float32_kernel<(lynx_rt::DType)1>": 18,
        "to_float32_kernel<(lynx_rt::DType)2>": 18,
    },
    "pack_codes": {
        "pack_codes_kernel<4>": 38,
        "pack_codes_kernel<8>": 40,
        "pack_scales_kernel<unsigned char>": 30,
        "pack_scales_kernel<unsigned int>": 30,
        "pack_scales_kernel<unsigned short>": 30,
    },
    "qkv_post": {
        "mla_post_kernel": 48,
        "qkv_post_kernel<4>": 61,
        "qkv_post_kernel<8>": 80,
        "width_kernel": 47,
    },
    "round": {
        "round_heads_kernel": 34,
        "round_kernel": 30,
    },
    "route": {
        "route_state::route_kernel<*, Admit, true>": GROUPS,
        "route_state::route_kernel<16, Admit, false>": 68,
        "route_state::route_kernel<2, Admit, false>": 66,
        "route_state::route_kernel<4, Admit, false>": 68,
        "route_state::route_kernel<8, Admit, false>": 66,
    },
    "route_gates": {
        "route_state::route_kernel<*, route_state::AdmitByGates, true>": GROUPS,
        "route_state::route_kernel<*, route_state::AdmitCover, true>": GROUPS,
        "route_state::route_kernel<16, route_state::AdmitByGates, false>": 71,
        "route_state::route_kernel<16, route_state::AdmitCover, false>": 72,
        "route_state::route_kernel<2, route_state::AdmitByGates, false>": 64,
        "route_state::route_kernel<2, route_state::AdmitCover, false>": 64,
        "route_state::route_kernel<4, route_state::AdmitByGates, false>": 66,
        "route_state::route_kernel<4, route_state::AdmitCover, false>": 64,
        "route_state::route_kernel<8, route_state::AdmitByGates, false>": 64,
        "route_state::route_kernel<8, route_state::AdmitCover, false>": 66,
    },
    "route_keys": {
        "keys_kernel": 48,
    },
    "route_large": {
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
        "route_state::route_kernel<*, route_state::ChooseByRow, true>": GROUPS,
        "route_state::route_kernel<16, route_state::ChooseByRow, false>": 94,
        "route_state::route_kernel<2, route_state::ChooseByRow, false>": 80,
        "route_state::route_kernel<4, route_state::ChooseByRow, false>": 80,
        "route_state::route_kernel<8, route_state::ChooseByRow, false>": 88,
    },
    "router": {
        "router_kernel<*, 4, 2, false>": 72,
        "router_kernel<*, 4, 2, true>": 72,
        "router_kernel<*, 8, 8, true>": 176,
    },
    "runtime": {
        "probe_kernel": 12,
    },
    "sample": {
        "sample_kernel": 88,
    },
    "soft_cap": {
        "soft_cap_kernel": 34,
    },
}
STACK: dict[str, int] = {}  # kernel -> bytes of stack frame that it may have; all others: 0


class Usage(NamedTuple):
    """The report of ptxas about one function on one architecture."""

    registers: int | None  # None: not a kernel, but a function that was not inlined
    stack: int
    spills: int


def parse(output: str) -> dict[str, dict[str, Usage]]:
    """Returns architecture -> function -> usage, from the output of nvcc -Xptxas -v."""
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


def table(file: Path, usage: dict[str, dict[str, Usage]]) -> dict[str, int]:
    """Returns the entry of CEILINGS for the measured usage."""
    most: dict[str, int] = {}
    for kernels in usage.values():
        for name, kernel in kernels.items():
            most[name] = max(most.get(name, 0), kernel.registers or 0)
    return {name: min(registers + SLACK, 255) for name, registers in sorted(most.items())}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_kernels_stay_in_registers(file: Path, compiled: dict[Path, Future]) -> None:
    output = compiled[file].result().output
    usage = parse(output)
    targets = ALL_TARGETS if file.stem == "runtime" else TARGETS
    assert sorted(usage) == sorted(name for names in targets.values() for name in names), output
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


# --- the wrappers


def wrappers(header: Path) -> set[str]:
    """Returns the names of the functions of a ptx.cuh."""
    function = r"^(?!struct)(?:__device__ __forceinline__ |inline )?(?:unsigned )?\w+\*? (\w+)\("
    return set(re.findall(function, header.read_text(), re.MULTILINE))


def test_every_wrapper_is_emulated() -> None:
    real, emulated = (
        wrappers(folder / "backend" / "cuda" / "runtime" / "ptx.cuh")
        for folder in (ROOT / "csrc", ROOT / "tests" / "simt")
    )
    assert len(real) > 30 and real <= emulated, sorted(real - emulated)


def test_nvcc_compiles_every_wrapper(tmp_path: Path) -> None:
    """WRAPPERS uses every function of ptx.cuh, so that PTX that no kernel uses is assembled, too."""
    unused = {name for name in wrappers(CUDA / "runtime" / "ptx.cuh") if not re.search(rf"\b{name}\b[<(]", WRAPPERS)}
    assert not unused, f"add {sorted(unused)} to WRAPPERS"
    source = tmp_path / "wrappers.cu"
    source.write_text(WRAPPERS)
    compile_file(nvcc(), source, tmp_path / "wrappers.o")


WRAPPERS = """
#include "backend/cuda/runtime/launch.h"
#include "backend/cuda/runtime/ptx.cuh"
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
  prefetch_line(in + v % 64);
  const Words4 once = load_once(in + v % 64), again = load_16(in + once.x % 64);
  v += once.y ^ again.z;
  atomic_or(counts, v);
  atomic_min(counts + 1, uint32_t(count_bits(v)));
  atomic_add(counts + 2, uint32_t(lowest_bit(v | 1)));
  const Words2 half_once = load_once_8(in + v % 64);
  v += fma_bf16x2(half_once.x, half_once.y, v) ^ to_f16x2(from_f16(uint16_t(v)), c[3]);
  v += atomic_fetch_add(counts + 3, to_bf16x2(c[0], c[1]) + to_bf16(c[2]));
  out[threadIdx.x] = bits_float(float_bits(c[0])) + c[1] + c[2] + float(shuffle_xor(kFullWarp, double(c[3]), 1)) +
                     fast_exp(from_bf16(uint16_t(v))) + accurate_exp(c[1]) + accurate_erf(c[2]);
}
void go(const uint4* in, float* out, uint32_t* counts, Stream stream) {
  launch(use, 1, 64, 64 * 1024, stream, in, out, counts);
}
"""
