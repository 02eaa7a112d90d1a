"""The C++ library and its tests, built once for all Python tests that need them.

The tree is LYNX_RT_TEST_BUILD_DIR, or build/cpp-tests in the repository: kept, so that a second run compiles only what
changed. A tree that is configured already keeps its settings: tools/test.sh gives the one that the package was built in.
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT_TESTS = sorted(file.stem for file in Path(__file__).parent.glob("test_*.cc"))


@functools.cache
def build_tree() -> Path:
    """The configured and built tree. Skips where there is no compiler to build it with."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} on PATH")
    tree = Path(os.environ.get("LYNX_RT_TEST_BUILD_DIR") or ROOT / "build" / "cpp-tests")
    configure = ["cmake", "-S", ROOT, "-B", tree, "-DLYNX_RT_TESTS=ON", "-DLYNX_RT_LIBRARY=ON"]
    configure += [f"-DPython3_EXECUTABLE={sys.executable}"]
    if not (tree / "CMakeCache.txt").exists():
        configure += ["-DCMAKE_CXX_FLAGS_RELEASE=-O1", *(["-G", "Ninja"] if shutil.which("ninja") else [])]
    run(configure)
    targets = ["lynx_rt", "lynx_rt_static", "test_engine_emulated", *UNIT_TESTS]
    run(["cmake", "--build", tree, "--parallel", str(len(os.sched_getaffinity(0))), "--target", *targets])
    return tree


@functools.cache
def install_prefix() -> Path:
    """The library as installed from that tree."""
    prefix = build_tree() / "installed"
    shutil.rmtree(prefix, ignore_errors=True)
    run(["cmake", "--install", build_tree(), "--prefix", prefix, "--component", "devel"])
    return prefix


def run(command: list[str | Path], **options: object) -> str:
    """Runs a command and returns its output; fails the test with all of it where the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}", pytrace=False)
    return done.stdout
