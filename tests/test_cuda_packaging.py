"""How a build of lynx_rt finds the CUDA compiler, and what it refuses. Needs no GPU and no network; nothing is compiled."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "backend" / "cuda"
WHEELS = [f"nvidia-{part}==13.0.*" for part in ("cuda-nvcc", "cuda-crt", "cuda-runtime", "nvvm")]


def program(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- tools/build_backend.py


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build backend on a machine without nvcc: PATH is `bin`, the toolkit's place `toolkit`, the environment's `site`."""
    pytest.importorskip("setuptools.build_meta")
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "tools" / "build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("LYNX_RT_CUDA", "CUDACXX", "LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(module, "TOOLKIT", tmp_path / "toolkit")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "elsewhere"), str(tmp_path / "site")])
    for hook in ("wheel", "editable"):
        monkeypatch.setattr(module.build_meta, f"get_requires_for_build_{hook}", lambda settings: ["wheel"])
    return module


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
@pytest.mark.parametrize("mode, wheels", [("on", WHEELS), ("auto", []), ("off", []), ("", []), (None, [])])
def test_wheels_only_where_asked_for(
    hook: str, mode: str | None, wheels: list[str], backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not None:
        monkeypatch.setenv("LYNX_RT_CUDA", mode)
    assert getattr(backend, hook)() == [*wheels, "wheel"]


@pytest.mark.parametrize("place", ["CUDACXX", "bin", "toolkit/bin"])
def test_no_wheels_where_there_is_an_nvcc(
    place: str, backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LYNX_RT_CUDA", "on")
    program(tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc")  # the machine's own comes first
    nvcc = program(tmp_path / place / "nvcc")
    if place == "CUDACXX":
        monkeypatch.setenv("CUDACXX", str(nvcc))
    assert backend.get_requires_for_build_wheel() == ["wheel"]
    assert backend.cuda_environment() == {"CUDACXX": str(nvcc)}


@pytest.mark.parametrize("mode", ["on", "auto"])
@pytest.mark.parametrize("before", [None, "/other"])
def test_compiler_of_the_wheels(
    mode: str, before: str | None, backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LYNX_RT_CUDA", mode)
    if before:
        monkeypatch.setenv("LIBRARY_PATH", before)
    (tmp_path / "site" / "nvidia" / "cu14" / "lib").mkdir(parents=True)  # libraries without a compiler
    toolkit = tmp_path / "site" / "nvidia" / "cu13"
    program(toolkit / "bin" / "nvcc")
    assert backend.cuda_environment() == {
        "CUDACXX": str(toolkit / "bin" / "nvcc"),
        "LIBRARY_PATH": f"{toolkit / 'lib'}:{before}" if before else str(toolkit / "lib"),
    }


def test_builds_without_cuda(backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.cuda_environment() == {}  # auto, and no nvcc
    program(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("LYNX_RT_CUDA", "off")
    assert backend.cuda_environment() == {}


@pytest.mark.parametrize(
    "variables, text",
    [
        ({"LYNX_RT_CUDA": "yes"}, "LYNX_RT_CUDA: expected auto, on or off, got 'yes'"),
        ({"CUDACXX": "/nowhere/nvcc", "LYNX_RT_CUDA": "on"}, "CUDACXX: /nowhere/nvcc is not a program"),
        ({"LYNX_RT_CUDA": "on"}, f"pip install {' '.join(WHEELS)}"),
    ],
)
def test_errors_come_early(
    variables: dict[str, str], text: str, backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=re.escape(text)):
        backend.cuda_environment()
    if "expected" in text:
        with pytest.raises(SystemExit, match=re.escape(text)):
            backend.get_requires_for_build_wheel()


def test_kept_build_folder_forgets_a_lost_compiler(backend: ModuleType, tmp_path: Path) -> None:
    nvcc = program(tmp_path / "nvcc")
    tree = tmp_path / "tree"
    backend.forget_lost_compiler(tree)  # there is none yet
    found = tree / "CMakeFiles" / "4.1.0" / "CMakeCUDACompiler.cmake"
    found.parent.mkdir(parents=True)
    found.touch()
    others = "CMAKE_CXX_COMPILER:FILEPATH=/usr/bin/c++\nLYNX_RT_CUDA:STRING=on\n"
    cache = tree / "CMakeCache.txt"
    cache.write_text(f"CMAKE_CUDA_COMPILER:FILEPATH={nvcc}\nCUDA_x:STRING=1\n{others}")
    before = cache.read_text()
    backend.forget_lost_compiler(tree)
    assert cache.read_text() == before and found.exists()
    nvcc.unlink()
    backend.forget_lost_compiler(tree)
    assert cache.read_text() == others and not found.exists()


def test_build_backend_is_in_the_source_distribution(backend: ModuleType) -> None:
    assert "include tools/build_backend.py\n" in (ROOT / "MANIFEST.in").read_text()
    assert 'backend-path = ["tools"]' in (ROOT / "pyproject.toml").read_text()
    for hook in ("build_wheel", "build_editable", "build_sdist", "prepare_metadata_for_build_wheel"):
        assert callable(getattr(backend, hook))


# --- CMake


def cmake(*arguments: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Returns the exit status, and the output in one line."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake on PATH")
    done = subprocess.run(
        ["cmake", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, " ".join(done.stdout.split())


def configure(tree: Path, *options: str, environment: dict[str, str] | None = None) -> str:
    if shutil.which("c++") is None:
        pytest.skip("needs c++ on PATH")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = (f"-DPython3_EXECUTABLE={sys.executable}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options)
    status, output = cmake("-S", ROOT, "-B", tree, *generator, *options, environment=environment)
    assert status == 0, output
    return output


def fake_gpus(folder: Path, capabilities: str) -> str:
    return f"-DLYNX_RT_NVIDIA_SMI={program(folder / 'nvidia-smi', f'printf {capabilities!r}')}"


@pytest.mark.parametrize(
    "options, text",
    [
        (["-DLYNX_RT_CUDA=yes"], "LYNX_RT_CUDA: expected auto, on or off, got 'yes'"),
        (["-DLYNX_RT_CUDA="], "LYNX_RT_CUDA: expected auto, on or off, got ''"),
        *(
            (
                [f"-DLYNX_RT_CUDA={mode}", f"-DLYNX_RT_CUDA_ARCHITECTURES={value}"],
                "LYNX_RT_CUDA_ARCHITECTURES: expected some of 80;86;89;90a;100a;120, separated by semicolons, "
                f"got '{got}'",
            )
            for mode in ("auto", "on", "off")
            for value, got in (("75", "75"), ("90a;sm_80", "sm_80"), ("80,90a", "80,90a"), ("all", "all"))
        ),
    ],
)
def test_bad_values_are_refused(options: list[str], text: str) -> None:
    status, output = cmake(*options, "-P", ROOT / "csrc" / "backend" / "devices.cmake")
    assert status != 0 and text in output, output


def test_a_gpu_without_nvcc_gets_a_notice(tmp_path: Path) -> None:
    nowhere = {"CUDACXX": str(tmp_path / "nvcc")}
    output = configure(tmp_path / "tree", fake_gpus(tmp_path, "9.0\\n"), "-DLYNX_RT_CUDA=auto", environment=nowhere)
    assert output.count("this machine has a GPU, but no nvcc") == 1
    built = (tmp_path / "tree" / "compile_commands.json").read_text()
    assert "registry_cpu.cc" in built and "registry_cuda.cc" not in built


@pytest.mark.slow
def test_configures_with_cuda(tmp_path: Path) -> None:
    if shutil.which(os.environ.get("CUDACXX") or "nvcc") is None:
        pytest.skip("needs nvcc: CUDACXX, or on PATH")

    def targets() -> set[str]:
        """Returns the architectures that the kernels are compiled for."""
        commands = json.loads((tmp_path / "tree" / "compile_commands.json").read_text())
        compiled = {Path(c["file"]): c["command"] for c in commands if Path(c["file"]).is_relative_to(CUDA)}
        assert {file for file in compiled if file.suffix == ".cu"} == set(CUDA.rglob("*.cu"))
        kernels = [command for file, command in compiled.items() if file.suffix == ".cu"]
        assert all("-fmad=false" in command for command in kernels)
        [codes] = {",".join(re.findall(r",code=\[?([\w,]+)", command)) for command in kernels}
        return set(codes.split(","))

    on = configure(
        tmp_path / "tree", fake_gpus(tmp_path, ""), "-DLYNX_RT_CUDA=on", "-DLYNX_RT_CUDA_ARCHITECTURES=80;90;120"
    )
    assert "for 80;90a;120" in on
    assert targets() == {"sm_80", "sm_90a", "sm_120", "compute_120"}
    options = ["-DLYNX_RT_CUDA=auto", "-DLYNX_RT_CUDA_ARCHITECTURES="]
    auto = configure(tmp_path / "tree", fake_gpus(tmp_path, "8.9\\n7.5\\n10.0\\n8.9\\n12.1\\n"), *options)
    assert "no CUDA code for this machine's GPUs of compute capability 75" in auto
    assert targets() == {"sm_89", "sm_100a", "sm_120", "compute_120"}
    none = configure(tmp_path / "tree", fake_gpus(tmp_path, ""), "-DLYNX_RT_CUDA=on", "-DLYNX_RT_CUDA_ARCHITECTURES=")
    assert "for 90a" in none and targets() == {"sm_90a"}


def test_every_file_is_in_the_build() -> None:
    listed = set(
        re.findall(
            r"csrc/backend/cuda/([\w/]+\.(?:cu|cc))\b", (ROOT / "csrc" / "backend" / "devices.cmake").read_text()
        )
    )
    assert listed == {str(file.relative_to(CUDA)) for pattern in ("*.cu", "*.cc") for file in CUDA.rglob(pattern)}
