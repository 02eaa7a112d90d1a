"""Builds lynx_rt._C by running CMake. Everything else is in pyproject.toml.

Environment: LYNX_RT_CUDA=auto|on|off; CMAKE_ARGS (extra arguments); LYNX_RT_BUILD_DIR (kept between builds, so that a
rebuild compiles only what changed); CMAKE_BUILD_PARALLEL_LEVEL (compilers at a time, default: the cores of this process).
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake not found: pip install cmake ninja, or apt install cmake ninja-build")
        build_dir = Path(os.environ.get("LYNX_RT_BUILD_DIR", Path(self.build_temp).resolve() / "cmake"))
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        configure = [cmake, "-S", str(ROOT), "-B", str(build_dir), "-DLYNX_RT_PYTHON=ON", "-DLYNX_RT_LIBRARY=OFF"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DPython3_EXECUTABLE={sys.executable}"]
        configure += [f"-DLYNX_RT_CUDA={os.environ.get('LYNX_RT_CUDA', 'auto')}"]
        if ninja := shutil.which("ninja"):
            # Named, because a kept build folder remembers the ninja of an environment that pip has deleted since.
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build_dir), "--parallel", jobs, "--target", "_C"], check=True)
        subprocess.run(
            [cmake, "--install", str(build_dir), "--prefix", str(target), "--component", "python"], check=True
        )


setup(ext_modules=[Extension("lynx_rt._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
