"""Builds lynx_rt._C by running CMake, and lynx_rt._C_testing, which tests need, in place and for editable installs.

Everything else is in pyproject.toml.

Environment: LYNX_RT_CUDA=auto|on|off; LYNX_RT_CUDA_ARCHITECTURES ("80;90a"; default: the GPUs of this machine); CUDACXX;
CMAKE_ARGS (extra arguments); LYNX_RT_BUILD_DIR (kept between builds, so that a rebuild compiles only what changed);
CMAKE_BUILD_PARALLEL_LEVEL (compilers at a time, default: the cores of this process); LYNX_RT_TESTING=1 (_C_testing in every case).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "tools"))  # needed if this file runs without the build backend

from build_backend import cuda_environment, cuda_mode, forget_lost_compiler  # noqa: E402

MODULE, TESTING_MODULE = (Extension(f"lynx_rt.{name}", sources=[]) for name in ("_C", "_C_testing"))


class CMakeBuild(build_ext):
    def finalize_options(self):
        if self.inplace or self.editable_mode or os.environ.get("LYNX_RT_TESTING") == "1":
            self.distribution.ext_modules = [MODULE, TESTING_MODULE]
        super().finalize_options()

    def build_extensions(self):
        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake not found: pip install cmake ninja, or apt install cmake ninja-build")
        build_dir = Path(os.environ.get("LYNX_RT_BUILD_DIR", Path(self.build_temp).resolve() / "cmake"))
        configure = [cmake, "-S", str(ROOT), "-B", str(build_dir), "-DLYNX_RT_PYTHON=ON", "-DLYNX_RT_LIBRARY=OFF"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DPython3_EXECUTABLE={sys.executable}"]
        environment = {**os.environ, **cuda_environment()}
        configure += [f"-DLYNX_RT_CUDA={cuda_mode()}"]
        configure += [f"-DLYNX_RT_CUDA_ARCHITECTURES={os.environ.get('LYNX_RT_CUDA_ARCHITECTURES', '')}"]
        if ninja := shutil.which("ninja"):
            # Ninja's path is given, because a kept build folder remembers one in an environment that pip has deleted since.
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        modules = [extension.name.rpartition(".")[2] for extension in self.extensions]
        cores = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        )  # macOS has no affinity
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(cores)
        forget_lost_compiler(build_dir)
        build = [cmake, "--build", str(build_dir), "--parallel", jobs, "--target", *modules]
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(build, check=True, env=environment)
        for extension, module in zip(self.extensions, modules, strict=True):
            target = Path(self.get_ext_fullpath(extension.name)).resolve().parent
            install = [cmake, "--install", str(build_dir), "--prefix", str(target), "--component", f"python{module}"]
            subprocess.run(install, check=True)


VERSION = re.search(r'LYNX_RT_VERSION "(.*)"', (ROOT / "csrc" / "include" / "lynx_rt" / "version.h").read_text())[1]

setup(version=VERSION, ext_modules=[MODULE], cmdclass={"build_ext": CMakeBuild})
