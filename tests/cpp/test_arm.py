"""ARM without an ARM machine: the kernels are cross-compiled, and the programs that test them run in qemu's emulation of three CPUs.

The emulator knows what instructions compute and which CPU has them. It knows nothing of their speed.
"""

import re
import shutil
import subprocess

import pytest
from build_tree import ARM_EMULATOR, built, run
from kernel_objects import check_symbols, kernel_objects

PROGRAMS = ["test_kernels", "test_quantized", "test_blocks"]
ISAS = ["scalar", "neon", "neon_dotprod", "neon_i8mm", "neon_bf16"]
# Those of our instruction sets that a CPU has.
CPUS = {"cortex-a53": ISAS[:2], "neoverse-n1": ISAS[:3], "max": ISAS}
# Instructions beyond armv8-a that a file must use. No other kernel file may use them.
EXTENSIONS = {
    "kernels_neon_bf16": {"bfmmla"},
    "quant_neon_dotprod": {"sdot"},
    "quant_neon_i8mm": {"usdot", "usmmla"},
}
ALL_EXTENSIONS = {"udot", "sudot", "smmla", "ummla", "bfdot", "bfmlalb", "bfmlalt"}.union(*EXTENSIONS.values())

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_in_emulator(name: str, cpu: str) -> None:
    """A program finds the instruction sets of the CPU and no others, and all of its checks hold with each of them."""
    path = built("arm", *PROGRAMS) / "tests" / "cpp" / name
    output = run([ARM_EMULATOR, "-cpu", cpu, path], timeout=120)
    checks, failures = map(int, re.search(r"(\d+) checks, (\d+) failures", output).groups())
    assert checks > 0 and failures == 0
    if name == "test_kernels":
        assert re.findall(r"^(\w+): 0 failures$", output, re.MULTILINE) == CPUS[cpu]


def test_objects() -> None:
    """A kernel file uses the extensions that it is named after, and defines nothing that another file could define as well."""
    tree = built("arm", *PROGRAMS)
    prefix = "aarch64-linux-gnu-"
    assert shutil.which(f"{prefix}objdump"), "needs the binutils of the cross compiler"
    used = {}
    for file in kernel_objects(tree):
        check_symbols(file, f"{prefix}nm")
        text = subprocess.run([f"{prefix}objdump", "-d", file], capture_output=True, text=True, check=True).stdout
        mnemonics = set(re.findall(r"^ +[0-9a-f]+:\t[0-9a-f]{8} \t(\S+)", text, re.MULTILINE))
        assert "fmul" in mnemonics or "mul" in mnemonics, f"{file.name}: nothing was read"
        used[file.name.split(".")[0]] = mnemonics & ALL_EXTENSIONS
    expected = {name: EXTENSIONS.get(name, set()) for name in used}
    assert used == expected and set(EXTENSIONS) < set(used)
