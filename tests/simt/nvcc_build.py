"""Compiles the CUDA kernels with nvcc for the architectures, once for all tests that read the result.

Without nvcc (CUDACXX or on PATH) these tests are skipped. The first time takes about 6 CPU minutes; results are kept beside the
builds of the C++ tests, under a hash of their sources.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from build_tree import folder as build_folder
from build_tree import locked

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "backend" / "cuda"
FILES = sorted(CUDA.rglob("*.cu"))
# Compiled architecture -> architectures that it is for: one front end for those that see the same source. Every file is compiled for the
# oldest, the main and the newest; the shortest file and the wrappers for all. ptxas treats sm_86 nearly as it does sm_80, sm_89 exactly as
# sm_86, and sm_100a nearly as sm_120. ARCHITECTURES=all compiles every file for all but sm_89.
ALL_TARGETS = {"80": ("80", "86", "89"), "90a": ("90a",), "100a": ("100a",), "120": ("120",)}
if os.environ.get("ARCHITECTURES") == "all":
    TARGETS = ALL_TARGETS | {"80": ("80", "86")}
else:
    TARGETS = {"80": ("80",), "90a": ("90a",), "120": ("120",)}
FLAGS = ["-std=c++20", "-fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v"]  # as csrc/backend/devices.cmake


def demangle(name: str) -> str:
    """Returns name and template arguments of a function, without namespaces and parameters."""
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


def nvcc() -> str:
    path = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    if path is None:
        pytest.skip("needs nvcc: CUDACXX, or on PATH")
    return path


def compile_file(compiler: str, file: Path, output: Path) -> str:
    """Compiles a file with warnings as errors and returns what nvcc prints. An output *.fatbin has the kernels only, for TARGETS, which
    takes a third less time than for all: their launchers are C++ that tests/simt compiles."""
    wanted = TARGETS if output.suffix == ".fatbin" else ALL_TARGETS
    targets = [
        f"-gencode=arch=compute_{ptx},code=[{','.join(f'sm_{n}' for n in names)}]" for ptx, names in wanted.items()
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


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> Iterator[dict[Path, Future]]:
    """Compiles the files that this run's tests ask for, with a compiler per core, longest first."""
    compiler = nvcc()
    folder = build_folder("nvcc")
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted(file for file in (ROOT / "csrc").rglob("*") if file.suffix in (".h", ".cuh"))
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    common = hashlib.sha256(
        repr((FLAGS, ALL_TARGETS, TARGETS, version, [file.read_bytes() for file in headers])).encode()
    )
    wanted = {item.callspec.params.get("file") for item in request.session.items if hasattr(item, "callspec")}

    def work(file: Path) -> Compiled:
        key = common.copy()
        key.update(file.read_bytes())
        suffix = ".o" if file.stem == "runtime" else ".fatbin"
        target = folder / f"{file.stem}-{key.hexdigest()[:16]}{suffix}"
        output = target.with_suffix(".txt")  # exists once the compilation has succeeded
        with locked(folder / file.stem):  # another process of this run may want the same
            if not output.exists():
                for old in folder.glob(f"{file.stem}-*"):
                    old.unlink()
                output.write_text(compile_file(compiler, file, target))
        return Compiled(output.read_text(), target)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        files = sorted(wanted.intersection(FILES), key=lambda file: file.stat().st_size, reverse=True)
        yield {file: pool.submit(work, file) for file in files}
