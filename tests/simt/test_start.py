"""Starts the programs of tests/gpu and bench/gpu with a stand-in for the CUDA runtime: on a machine with a GPU they must reach
main(), and ask for a kernel only once it is registered. Skipped without nvcc.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import Future
from pathlib import Path

import pytest
from nvcc_build import CUDA, ROOT

pytestmark = pytest.mark.slow

GPU = ROOT / "tests" / "gpu"
SIMT = ROOT / "tests" / "simt"


def link_options() -> list[str]:
    """Returns the link options of gpu_program()."""
    found = re.search(r"target_link_options\(\$\{name\} PRIVATE ([^)]+)\)", (GPU / "CMakeLists.txt").read_text())
    return [option.replace("LINKER:", "-Wl,") for option in found[1].split()] if found else []


@pytest.mark.parametrize("file", [CUDA / "runtime" / "runtime.cu"], ids=lambda file: file.name)
def test_a_program_asks_for_kernels_once_they_are_registered(
    file: Path, compiled: dict[Path, Future], tmp_path: Path
) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs c++ on PATH")
    runtime = compiled[file].result().file
    main = tmp_path / "main.cc"
    main.write_text('#include <cstdio>\nint main() { std::puts("main"); }\n')
    # The order of gpu_program(): the object of start.cc first, kernels last.
    sources = [GPU / "start.cc", main, runtime, SIMT / "cudart_stand_in.cc", ROOT / "csrc" / "base" / "error.cc"]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    command = [
        "c++",
        "-std=c++20",
        *includes,
        *map(str, sources),
        *link_options(),
        "-o",
        str(tmp_path / "program"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout

    def run(**environment: str) -> tuple[int, list[str], str]:
        done = subprocess.run(
            [tmp_path / "program"], capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    code, log, errors = run()
    assert (code, errors) == (0, ""), (log, errors)
    assert "register" in log[0] and "probe_kernel" in log[0]
    assert log[1:] == ["count devices", "attributes of a kernel that is registered", "main"]
    code, log, errors = run(STAND_IN_NO_DEVICE="1")
    assert code == 77 and "main" not in log and "runs on a GPU only" in errors
