"""Runs the C++ unit tests, plain and under sanitizers, and checks the objects that they are linked from."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from build_tree import ROOT, TSAN_TESTS, UNIT_TESTS, folder, program, run, tsan_prefix

HERE = Path(__file__).parent


def test_cmake_builds_every_test() -> None:
    text = (HERE / "CMakeLists.txt").read_text()
    assert sorted(re.findall(r"\btest_\w+(?= |\))", text.split("foreach(name ")[1].splitlines()[0])) == UNIT_TESTS


def holds(command: list[str | Path], **environment: str) -> None:
    """Runs a program, which must make checks without a failure."""
    output = run(command, timeout=300, env={**os.environ, **environment})
    checks, failures = map(int, re.search(r"(\d+) checks, (\d+) failures", output).groups())
    assert checks > 0 and failures == 0


def arguments(name: str) -> list[Path]:
    takes_model = name.startswith(("test_allocations", "test_c_api", "test_engine", "test_fork", "test_model"))
    folders = [ROOT / "lynx_rt" / "models" / "lynx-nano"] if takes_model else []
    return [*folders, ROOT / "tests" / "simt" / "families"] if name == "test_model" else folders


@pytest.mark.parametrize("name", UNIT_TESTS)
def test_unit(name: str) -> None:
    holds([program(name), *arguments(name)])


@pytest.mark.slow
@pytest.mark.parametrize("name", UNIT_TESTS)
def test_under_address_sanitizer(name: str) -> None:
    """Runs a program under AddressSanitizer and UndefinedBehaviorSanitizer."""
    holds([program(name, "asan"), *arguments(name)])


@pytest.mark.slow
@pytest.mark.parametrize("name", TSAN_TESTS)
def test_under_thread_sanitizer(name: str) -> None:
    holds([*tsan_prefix(), program(name, "tsan"), *arguments(name)], TSAN_OPTIONS="halt_on_error=1")


@pytest.mark.slow
def test_thread_sanitizer_finds_a_race() -> None:
    """ThreadSanitizer must report a loop whose tasks count without a lock, and not its twin with an atomic counter."""
    race = [*tsan_prefix(), folder("tsan") / "tests" / "cpp" / "tsan_starts", "race"]
    done = subprocess.run(race, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "data race" in done.stderr and "tsan_starts.cc" in done.stderr, done.stderr


def test_kernel_objects_define_no_shared_symbols() -> None:
    """The linker might keep a weak (COMDAT) symbol of a file compiled for AVX for all files, which would end a process on a CPU
    without AVX. So these files may define nothing that another file could define as well."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm on PATH")
    program(UNIT_TESTS[0])
    objects = sorted(file for kind in ("kernels", "quant") for file in folder("plain").rglob(f"{kind}_*.o"))
    assert len(objects) in (2, 10)
    for file in objects:
        lines = subprocess.run(
            ["nm", "-C", "--defined-only", file], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        symbols = [line.split(maxsplit=2)[1:] for line in lines]
        weak = [name for kind, name in symbols if kind in "WwVvu"]
        assert not weak, f"{file.name} defines {weak[:5]}"
        exported = [name for kind, name in symbols if kind in "TDBRG"]
        # Each file defines a table; kernels_amxbf16.cc has functions instead, which kernels.cc puts into a copy of another table.
        own = ("lynx_rt::cpu::k", "lynx_rt::cpu::amx_") if "amx" in file.name else "lynx_rt::cpu::k"
        assert all(name.startswith(own) for name in exported), f"{file.name} defines {exported}"
