"""Runs the C++ unit tests, plain and under sanitizers, and checks the objects that they are linked from."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from build_tree import ROOT, TSAN_TESTS, UNIT_TESTS, folder, program, run, tsan_prefix
from kernel_objects import check_symbols, kernel_objects

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
    takes_model = name.startswith(
        ("test_allocations", "test_c_api", "test_engine", "test_fork", "test_model", "test_pack")
    )
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
    if shutil.which("nm") is None:
        pytest.skip("needs nm on PATH")
    program(UNIT_TESTS[0])
    objects = kernel_objects(folder("plain"))
    assert len(objects) in (2, 10, 7)  # no instruction set, those of x86, those of ARM
    for file in objects:
        check_symbols(file, "nm")
