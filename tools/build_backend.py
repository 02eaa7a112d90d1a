"""The build backend: setuptools', which also requires the CUDA compiler's wheels where they are needed.

LYNX_RT_CUDA=on without an nvcc installs them from PyPI (100 MB, NVIDIA's licence) into the environment that builds; auto and
off never do. setup.py uses the functions below too.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks)

# The compiler's version is that of the oldest driver for CUDA 13 (580): its PTX must not be newer than the driver. Each part is
# pinned, because nvidia-cuda-nvcc accepts any version of the others.
CUDA_WHEELS = [f"nvidia-{part}==13.0.*" for part in ("cuda-nvcc", "cuda-crt", "cuda-runtime", "nvvm")]
TOOLKIT = Path("/usr/local/cuda")  # where NVIDIA's installers put it, without touching PATH


def cuda_mode() -> str:
    """Returns the checked value of LYNX_RT_CUDA."""
    mode = os.environ.get("LYNX_RT_CUDA") or "auto"
    if mode not in ("auto", "on", "off"):
        raise SystemExit(f"LYNX_RT_CUDA: expected auto, on or off, got {mode!r}")
    return mode


def installed_nvcc() -> str | None:
    """Returns the nvcc of this machine: CUDACXX, else on PATH, else in the usual place."""
    if named := os.environ.get("CUDACXX"):
        if shutil.which(named) is None:
            raise SystemExit(f"CUDACXX: {named} is not a program")
        return named
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(TOOLKIT / "bin"))


def wheel_toolkit() -> Path | None:
    """Returns the folder of a CUDA toolkit that wheels put into the environment of this process."""
    for folder in map(Path, sys.path):
        for toolkit in sorted(folder.glob("nvidia/cu*"), reverse=True):
            if shutil.which("nvcc", path=str(toolkit / "bin")):
                return toolkit
    return None


def cuda_requirements() -> list[str]:
    """Returns the requirements that LYNX_RT_CUDA adds to pyproject.toml's build requirements."""
    return list(CUDA_WHEELS) if cuda_mode() == "on" and installed_nvcc() is None else []


def cuda_environment() -> dict[str, str]:
    """Returns environment variables with which CMake finds the CUDA compiler."""
    if cuda_mode() == "off":
        return {}
    if nvcc := installed_nvcc():
        return {"CUDACXX": nvcc}
    if toolkit := wheel_toolkit():
        # The wheels' nvcc looks for its libraries in lib64, but the wheels put them into lib.
        paths = [str(toolkit / "lib"), os.environ.get("LIBRARY_PATH")]
        return {"CUDACXX": str(toolkit / "bin" / "nvcc"), "LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
    if cuda_mode() == "on":
        raise SystemExit(
            "LYNX_RT_CUDA=on: no nvcc in CUDACXX, on PATH or in /usr/local/cuda/bin, nor in the environment that builds; "
            f"without build isolation install it first: pip install {' '.join(CUDA_WHEELS)}"
        )
    return {}


def forget_lost_compiler(build_dir: Path) -> None:
    """Removes from a kept build folder the nvcc of an environment that pip has deleted since: CMake would stop at it."""
    cache = build_dir / "CMakeCache.txt"
    nvcc = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(/.*)$", cache.read_text(), re.MULTILINE) if cache.exists() else None
    if nvcc and not os.path.exists(nvcc[1]):
        lines = cache.read_text().splitlines(keepends=True)
        cache.write_text("".join(line for line in lines if not re.match(r"(CMAKE_)?CUDA", line)))
        for file in build_dir.glob("CMakeFiles/*/CMakeCUDACompiler.cmake"):
            file.unlink()


def get_requires_for_build_wheel(config_settings=None):
    return cuda_requirements() + build_meta.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings=None):
    return cuda_requirements() + build_meta.get_requires_for_build_editable(config_settings)
