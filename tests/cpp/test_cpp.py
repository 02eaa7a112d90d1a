"""Runs the C++ unit tests, and looks at the objects that they are linked from."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from build_tree import ROOT, UNIT_TESTS, build_tree, run

HERE = Path(__file__).parent


def test_cmake_builds_every_test() -> None:
    text = (HERE / "CMakeLists.txt").read_text()
    assert sorted(re.findall(r"\btest_\w+(?= |\))", text.split("foreach(name ")[1].splitlines()[0])) == UNIT_TESTS


@pytest.mark.parametrize("name", UNIT_TESTS)
def test_unit(name: str) -> None:
    takes_model = name.startswith(("test_allocations", "test_c_api", "test_fork", "test_model"))
    arguments = [ROOT / "lynx_rt" / "models" / "lynx-nano"] if takes_model else []
    if name == "test_model":
        arguments.append(ROOT / "tests" / "simt" / "families")
    output = run([build_tree() / "tests" / "cpp" / name, *arguments], timeout=120)
    checks, failures = map(int, re.search(r"(\d+) checks, (\d+) failures", output).groups())
    assert checks > 0 and failures == 0


def test_kernel_objects_define_no_shared_symbols() -> None:
    """A weak (COMDAT) symbol of a file compiled for AVX could be the copy that the linker keeps for every file, and then end
    a process on a CPU without AVX. So these files may define nothing that another file could define as well."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm on PATH")
    objects = sorted(file for kind in ("kernels", "quant") for file in build_tree().rglob(f"{kind}_*.o"))
    assert len(objects) in (2, 9)
    for file in objects:
        lines = subprocess.run(
            ["nm", "-C", "--defined-only", file], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        symbols = [line.split(maxsplit=2)[1:] for line in lines]
        weak = [name for kind, name in symbols if kind in "WwVvu"]
        assert not weak, f"{file.name} defines {weak[:5]}"
        exported = [name for kind, name in symbols if kind in "TDBRG"]
        # A table each; kernels_amxbf16.cc has two functions instead, which kernels.cc puts into a copy of the one below it.
        own = ("lynx_rt::cpu::k", "lynx_rt::cpu::amx_") if "amx" in file.name else "lynx_rt::cpu::k"
        assert all(name.startswith(own) for name in exported), f"{file.name} defines {exported}"
