"""Checks the instructions of the kernels for sm_90a, and the order that ptxas gave them.

Skipped without nvcc. The disassembler comes from the wheels nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, or is on PATH.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from nvcc_build import FILES
from sass import MEMORY, Instruction, disassemble, most_in_flight, parse

pytestmark = pytest.mark.slow

KERNEL_FILES = [file for file in FILES if file.stem != "runtime"]
# Kernels whose SASS must have the tensor core's instruction and 16-byte loads.
MATRIX_KERNELS = {"gate_up", "down", "head_linear", "linear"}
# Kernels that load weights before grid_wait(), and the loads that a thread has in flight when it waits: of 8 bytes for codes of 4 bits
# (kernel<4, ...>), else of 16.
PREFETCHES = {
    "linear_kernel<16, 1, 4>": 6,
    "linear_kernel<16, *>": 8,
    "linear_kernel<8, 1, 1>": 3,
    "linear_kernel<8, 2, 1>": 6,
    "linear_kernel<4, 1, 1>": 5,
    "linear_kernel<4, 2, 1>": 10,
    "linear_kernel<*>": 4,
    "head_linear_kernel<*>": 8,
    "norm_kernel<1, *>": 1,
    "norm_kernel<2, *>": 2,
    "norm_kernel<4, *>": 4,
}
# Loads that a thread of the router has in flight before it uses the first: all of a step (x and weights); for the large tile, as
# many as ptxas has registers for.
ROUTER_LOADS = {
    "router_kernel<*, 4, 2, true>": 4 + 2,
    "router_kernel<*, 8, 8, true>": 14,
    "router_kernel<*, 4, 2, false>": 4 * (4 + 2) - 4,  # one by one; ptxas holds some bf16 back
}


@pytest.fixture(scope="module")
def cuobjdump() -> tuple[str, dict[str, str]]:
    """Returns the program, and an environment in which it finds nvdisasm."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    if importlib.util.find_spec("nvidia"):
        for place in importlib.util.find_spec("nvidia").submodule_search_locations or []:
            folders += map(str, Path(place).glob("cu*/bin"))
    path = os.pathsep.join(folders)
    program = shutil.which("cuobjdump", path=path)
    if program is None or shutil.which("nvdisasm", path=path) is None:
        pytest.skip("needs cuobjdump and nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return program, {**os.environ, "PATH": path}


@pytest.fixture(scope="module")
def kernels_of(
    compiled: dict[Path, Future], cuobjdump: tuple[str, dict[str, str]]
) -> Iterator[Callable[[Path], dict[str, list[Instruction]]]]:
    """Returns file -> kernel -> its instructions. All files are disassembled as soon as they are compiled, one per core."""

    def read(file: Path) -> dict[str, list[Instruction]]:
        return disassemble(cuobjdump, compiled[file].result().file, "90a")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = {file: pool.submit(read, file) for file in compiled if file in KERNEL_FILES}
        yield lambda file: done[file].result()


def entry(table: dict[str, int], kernel: str) -> int | None:
    """Returns the value of the first pattern that fits."""
    return next((value for pattern, value in table.items() if fnmatchcase(kernel, pattern)), None)


def find(instructions: list[Instruction], opcode: str) -> int | None:
    return next((i for i, found in enumerate(instructions) if found.opcode.startswith(opcode)), None)


def weight_bits(kernel: str) -> str:
    """Returns the suffix of the loads of a kernel's weights."""
    return ".64" if kernel.startswith(("linear_kernel<4,", "gate_up_kernel<4,", "down_kernel<4,")) else ".128"


# --- the rules; each function returns a list of a kernel's faults


def dependent_launch_faults(name: str, instructions: list[Instruction]) -> list[str]:
    """grid_wait() comes before everything that depends on an earlier kernel, and on every way out; prefetches before it."""
    wait = find(instructions, "ACQBULK")
    if wait is None:
        return [f"{name}: no grid_wait()"]
    before = instructions[:wait]
    touched = [i for i in before if i.name in MEMORY]
    loads = sum(i.name == "LDG" and i.opcode.endswith(weight_bits(name)) for i in touched)
    expected = entry(PREFETCHES, name)
    faults = []
    if others := sorted({i.opcode for i in touched if i.name != "LDG" or expected is None}):
        faults.append(f"{name}: before grid_wait(): {', '.join(others)}")
    if expected is not None and loads != expected:
        faults.append(f"{name}: {loads} loads of weights before grid_wait(), expected {expected}")
    if instructions[wait].waits & {i.sets for i in touched}:
        faults.append(f"{name}: grid_wait() waits for the loads before it")
    if (gone := find(instructions, "EXIT")) is None or gone < wait:
        faults.append(f"{name}: a way out before grid_wait()")
    if (start := find(instructions, "PREEXIT")) is None or start < wait:
        faults.append(f"{name}: grid_launch_dependents() is missing or before grid_wait()")
    return faults


def router_faults(name: str, instructions: list[Instruction]) -> list[str]:
    expected, found = entry(ROUTER_LOADS, name), most_in_flight(instructions)
    return [] if expected and found >= expected else [f"{name}: {found} loads under way at a time, expected {expected}"]


def route_faults(name: str, instructions: list[Instruction]) -> list[str]:
    """A row's scores are all in flight before the first is tested (512 experts: as many as there are registers for), and the
    block reaches its first barrier before it computes what only some policies need."""
    if not re.search("route_kernel|rows_kernel", name):
        return []  # reads no scores
    if re.search(r"route_kernel<.*, true>", name):
        return []  # one pass for each isolation group, after the others: no speed is claimed for it
    test = find(instructions, "ATOMS.MIN")
    per_lane = int(re.search(r"<(\d+)", name)[1])
    found, expected = most_in_flight(instructions[:test]), min(per_lane, 10)
    faults = [] if found >= expected else [f"{name}: {found} scores under way at a time, expected {expected}"]
    if (barrier := find(instructions, "BAR.SYNC")) is None or barrier > 256:
        faults.append(f"{name}: instruction {barrier} is the first barrier, expected one of the first 256")
    return faults


LISTING = """
		Function : _Z6kernelv
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/              @P3 LDG.E.128 R8, desc[UR6][R68.64] ;           /* 0x0000000644083981 */
                                                                              /* 0x000f62000c1e1d00 */
        /*0020*/                   LDG.E.128 R12, desc[UR6][R68.64+0x200] ;   /* 0x00020006440c3981 */
                                                                              /* 0x000f62000c1e1d00 */
        /*0030*/                   ACQBULK ;                                  /* 0x000000000000782e */
                                                                              /* 0x000fe20000000000 */
        /*0040*/                   PREEXIT ;                                  /* 0x000000000000782d */
                                                                              /* 0x000fe20000000000 */
        /*0050*/                   FFMA R1, R8, R12, R1 ;                     /* 0x0000000c08017223 */
                                                                              /* 0x020fe20000000001 */
        /*0060*/                   EXIT ;                                     /* 0x000000000000794d */
                                                                              /* 0x000fea0003800000 */
"""


def test_the_order_of_instructions_is_judged() -> None:
    """Needs no nvcc: parses a listing, and breaks each rule by one change of it."""
    (good,) = parse(LISTING).values()
    assert [i.opcode for i in good] == ["LDC", "LDG.E.128", "LDG.E.128", "ACQBULK", "PREEXIT", "FFMA", "EXIT"]
    assert [i.sets for i in good] == [None, 5, 5, None, None, None, None] and good[5].waits == {5}
    assert most_in_flight(good) == 2
    load, wait, leave = good[1], good[3], good[6]
    assert dependent_launch_faults("norm_kernel<2, true>", good) == []

    def faults(kernel: str, instructions: list[Instruction]) -> str:
        (fault,) = dependent_launch_faults(kernel, instructions)
        return fault

    assert "before grid_wait(): LDG.E.128" in faults("other", good)
    assert "before grid_wait(): STG.E" in faults("norm_kernel<2, true>", [load._replace(opcode="STG.E"), *good])
    assert "0 loads" in faults("norm_kernel<2, true>", [wait, load, load, *good[4:]])
    assert "waits for the loads" in faults("norm_kernel<2, true>", [*good[:3], wait._replace(waits={5}), *good[4:]])
    assert "a way out" in faults("norm_kernel<2, true>", [leave, *good])
    assert "grid_launch_dependents" in faults("norm_kernel<2, true>", [*good[:4], *good[5:]])
    assert "no grid_wait()" in faults("norm_kernel<2, true>", [*good[:3], *good[4:]])
    assert router_faults("router_kernel<float, 4, 2, true>", good) and router_faults("router_kernel<other>", good)
    test = load._replace(opcode="ATOMS.MIN")
    assert route_faults("route_kernel<2, Admit>", [*good, test, wait._replace(opcode="BAR.SYNC")]) == []
    assert "1 scores" in route_faults("route_kernel<2, Admit>", [load, test, load, wait._replace(opcode="BAR.SYNC")])[0]
    assert "barrier" in route_faults("route_kernel<2, Admit>", [*good * 40, test, wait._replace(opcode="BAR.SYNC")])[0]


# --- the kernels


@pytest.mark.parametrize("file", KERNEL_FILES, ids=lambda file: file.name)
def test_dependent_launch(file: Path, kernels_of: Callable) -> None:
    kernels = kernels_of(file)
    assert kernels and all(kernels.values())
    faults = [fault for name, instructions in kernels.items() for fault in dependent_launch_faults(name, instructions)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("file", [f for f in FILES if f.stem.startswith("route")], ids=lambda file: file.name)
def test_loads_in_flight(file: Path, kernels_of: Callable) -> None:
    judge = router_faults if file.stem == "router" else route_faults
    faults = [fault for name, instructions in kernels_of(file).items() for fault in judge(name, instructions)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("file", [file for file in FILES if file.stem in MATRIX_KERNELS], ids=lambda file: file.name)
def test_instructions(file: Path, kernels_of: Callable) -> None:
    """Weights are loaded 16 bytes at a time (codes of 4 bits: 8), the tensor core multiplies, and nothing is in local memory."""
    kernels = kernels_of(file)
    assert kernels and all(kernels.values())
    for name, instructions in kernels.items():
        opcodes = [instruction.opcode for instruction in instructions]
        assert any(i.startswith("HMMA.16816.F32.BF16") for i in opcodes), f"{name}: no HMMA"
        assert any(i.startswith("LDG.E.NA") and i.endswith(weight_bits(name)) for i in opcodes), (
            f"{name}: no wide loads of weights"
        )
        local = {i for i in opcodes if i.startswith(("LDL", "STL"))}
        assert not local, f"{name}: local memory, {sorted(local)}"
