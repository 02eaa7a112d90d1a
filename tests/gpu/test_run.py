"""tests/gpu/run and bench/gpu/run without a GPU: the commands that they would run, and a run with stand-ins for all that they call."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = re.findall(
    r"test_\w+", (Path(__file__).parent / "CMakeLists.txt").read_text().split("set(tests")[1].split(")")[0]
)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash on PATH")


def run(script: str, out: Path, *options: str, **environment: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / script, out, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "LYNX_RT_COMMIT": "abc", **{key: str(value) for key, value in environment.items()}},
    )


def test_programs() -> None:
    """What runs on the emulated device runs on a GPU, but for the emulator's own test."""
    emulated = {path.stem for path in (ROOT / "tests" / "simt").glob("test_*.cc")}
    assert set(PROGRAMS) == {name for name in emulated if not name.startswith("test_engine_")} - {"test_emulator"}


SOURCES = [*(ROOT / "bench" / "gpu").glob("*.cc"), ROOT / "tests" / "gpu" / "start.cc"]
SOURCES += [
    path for path in (ROOT / "tests" / "simt").glob("test_*.cc") if path.stem not in ("test_simt", "test_emulator")
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs c++ on PATH")
@pytest.mark.parametrize("source", sorted(SOURCES), ids=lambda path: path.stem)
def test_sources_are_understood(source: Path) -> None:
    """By the host's compiler, with the include path of the GPU project: no other build compiles them so. test_simt is CUDA."""
    folders = [ROOT / "csrc", ROOT / "csrc" / "include", ROOT / "tests" / "cpp", ROOT / "bench" / "gpu"]
    command = ["c++", "-std=c++20", "-fsyntax-only", *(f"-I{folder}" for folder in folders), source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script, options", [("tests/gpu/run", ["--bench"]), ("bench/gpu/run", [])])
def test_dry(script: str, options: list[str], tmp_path: Path) -> None:
    """All that a run names is there, it fits into one call of 590 s, and comes in the order in which it would be missed."""
    done = run(script, tmp_path, "--quick", "--dry", *options, LYNX_RT_GPU_BUILD_DIR=tmp_path / "tree")
    assert done.returncode == 0, done.stdout
    planned, total = map(int, re.search(r"at most (\d+) s of (\d+) s", done.stdout).groups())
    assert planned <= total == 590
    names = re.findall(r"^(\S+) +\d+ s  ", done.stdout, re.MULTILINE)
    assert names[0] == "build" and "bench_engine" in names and names.index("bench_engine") < names.index("bench_ops")
    if script == "tests/gpu/run":
        assert names[1] == "simt" and {f"test_{name}" for name in names} >= set(PROGRAMS)
        checks = [name.startswith("check-") for name in names]
        assert checks == sorted(checks) and any(checks)
    assert "qwen3-30b-a3b --batch 1,16,64 --selection topk,lynx" in done.stdout  # of all 48 layers
    missing = run(script, tmp_path, "--dry", *options, LYNX_RT_JSON_DIR=tmp_path)
    assert missing.returncode == 1 and f"MISSING: {tmp_path}/nlohmann/json.hpp" in missing.stdout


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, object]:
    """The environment of a machine on which every program passes at once."""

    def program(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    for tool, text in {
        "cmake": "",
        "nvcc": "",
        "nvidia-smi": "echo A GPU",
        "ncu": "echo a table",
        "compute-sanitizer": "echo 'test_x: 3 checks, 0 failures'; echo '==== ERROR SUMMARY: 0 errors'",
        "no-python": "test $1 != -c",
    }.items():
        program(tmp_path / "bin" / tool, text)
    for name in PROGRAMS:
        program(tmp_path / "tree" / name, f"echo '{name}: 3 checks, 0 failures'")
    for name in ("bench_ops", "bench_engine"):
        program(tmp_path / "tree" / "bench" / name, """echo '{"bench": "x", "device": "A GPU"}'""")
    return {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LYNX_RT_GPU_BUILD_DIR": tmp_path / "tree",
        "PYTHON": "no-python",
    }


def results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "summary.jsonl").read_text().splitlines()]


def test_results_are_few_files(machine: dict[str, object], tmp_path: Path) -> None:
    done = run("tests/gpu/run", tmp_path / "out", "--quick", "--bench", **machine)
    assert done.returncode == 0, done.stdout
    found = results(tmp_path / "out")
    assert {r["name"] for r in found if r["ok"] is None} == {"python"}
    assert all(r["ok"] for r in found if r["name"] != "python") and {r["commit"] for r in found} == {"abc"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.tar.gz",
        "results.jsonl",
        "summary.txt",
        "summary.jsonl",
    }
    assert (tmp_path / "out" / "results.jsonl").read_text().count('"bench": "x"') == 4
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as packed:
        logs = {Path(name).stem for name in packed.getnames() if name.endswith(".log")}
    assert logs >= {r["name"] for r in found} - {"python"}


def test_nothing_runs_after_a_failure_of_what_all_is_made_of(machine: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "tree" / "test_simt").write_text("#!/bin/sh\necho 'test_simt: 3 checks, 1 failures'\nexit 1\n")
    done = run("tests/gpu/run", tmp_path / "out", "--quick", "--bench", **machine)
    assert done.returncode == 1
    assert [(r["name"], r["ok"]) for r in results(tmp_path / "out")] == [
        ("build", True),
        ("simt", False),
        ("stopped", None),
    ]


def test_a_step_without_time_is_not_run(machine: dict[str, object], tmp_path: Path) -> None:
    done = run("bench/gpu/run", tmp_path / "out", "--quick", **machine, LYNX_RT_GPU_SECONDS=0)
    assert done.returncode == 1  # the build
    assert {r["note"] for r in results(tmp_path / "out")} <= {"", "no time was left"}
