"""Builds the C++ library, its tests and the emulated CUDA kernels, once per kind for all Python tests that need them.

The plain tree is LYNX_RT_TEST_BUILD_DIR, or build/cpp-tests in the repository; those of the sanitizers and the one for ARM are beside
it, as cpp-tests-asan, cpp-tests-tsan and cpp-tests-arm. They are kept, so that a second run compiles only what changed. A tree that is configured already
keeps its settings: tools/test.sh passes the one in which the package was built.
"""

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT_TESTS = sorted(file.stem for file in Path(__file__).parent.glob("test_*.cc"))
SANITIZERS = {"plain": "", "asan": "address,undefined", "tsan": "thread"}
# What Debian has as g++-aarch64-linux-gnu and qemu-user. Programs are linked statically: the emulator needs no libraries then.
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_SETTINGS = [
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
    "-DLYNX_RT_CUDA=off",
]


def folder(kind: str) -> Path:
    """Returns the folder of a kind's tree."""
    plain = Path(os.environ.get("LYNX_RT_TEST_BUILD_DIR") or ROOT / "build" / "cpp-tests")
    return plain if kind == "plain" else plain.with_name(f"{plain.name}-{kind}")


@contextmanager
def locked(tree: Path) -> Iterator[None]:
    """Locks a tree against the other processes of a run (pytest -n)."""
    tree.mkdir(parents=True, exist_ok=True)
    with open(tree / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def configured(kind: str) -> Path:
    """Configures the tree of a kind and returns it. Skips the test where there is no compiler, or no emulator for its programs."""
    tools = ("cmake", ARM_COMPILER, ARM_EMULATOR) if kind == "arm" else ("cmake", "c++")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)} on PATH")
    tree = folder(kind)
    configure = ["cmake", "-S", ROOT, "-B", tree, "-DLYNX_RT_TESTS=ON", f"-DPython3_EXECUTABLE={sys.executable}"]
    configure += [
        f"-DLYNX_RT_LIBRARY={'ON' if kind == 'plain' else 'OFF'}",
        f"-DLYNX_RT_SANITIZE={SANITIZERS.get(kind, '')}",
    ]
    if kind == "tsan":  # here, so that every file is seen to include what it uses
        configure += ["-DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON"]
    if kind != "plain":
        configure += ["-DLYNX_RT_WERROR=ON"]
    if kind == "arm":
        configure += ARM_SETTINGS
    with locked(tree):
        if not (tree / "CMakeCache.txt").exists():
            configure += ["-G", "Ninja"] if shutil.which("ninja") else []
        elif ninja := shutil.which("ninja"):
            configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}"]  # a kept tree may have the path of one that is gone
        run(configure)
    return tree


@functools.cache
def built(kind: str, *targets: str) -> Path:
    """Builds these targets in the tree of a kind and returns it."""
    tree = configured(kind)
    with locked(tree):
        run(["cmake", "--build", tree, "--parallel", str(len(os.sched_getaffinity(0))), "--target", *targets])
    return tree


def program(name: str, kind: str = "plain") -> Path:
    """Returns the program of a C++ unit test. All tests of a kind are built together."""
    wanted = TSAN_TESTS if kind == "tsan" else UNIT_TESTS
    return built(kind, *wanted) / "tests" / "cpp" / name


# ThreadSanitizer finds nothing in programs of one thread, and does not support a fork() of a program of several.
TSAN_TESTS = [
    "test_c_api",
    "test_c_api_calls",
    "test_direct_reader",
    "test_engine_threads",
    "test_expert_store",
    "test_thread_pool",
]


@functools.cache
def tsan_prefix() -> tuple[str, ...]:
    """Returns the prefix with which a program of the tsan tree starts: some kernels use a memory layout that it does not support."""
    tree = built("tsan", "tsan_starts")
    prefixes: list[tuple[str, ...]] = [()]
    if shutil.which("setarch"):
        prefixes.append(("setarch", "-R"))
    for prefix in prefixes:
        done = subprocess.run(
            [*prefix, tree / "tests" / "cpp" / "tsan_starts"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return prefix
    pytest.skip(f"ThreadSanitizer does not start here: {done.stderr[:200]}")


@functools.cache
def install_prefix() -> Path:
    """Installs the library from the plain tree and returns the folder."""
    tree = built("plain", "lynx_rt", "lynx_rt_static")
    prefix = tree / f"installed-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    with locked(tree):
        shutil.rmtree(prefix, ignore_errors=True)
        run(["cmake", "--install", tree, "--prefix", prefix, "--component", "devel"])
    return prefix


def run(command: list[str | Path], **options: object) -> str:
    """Runs a command and returns its output. If the command fails, so does the test, with the whole output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}", pytrace=False)
    return done.stdout
