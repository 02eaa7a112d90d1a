"""Checks the wheel that `python -m build` makes: its contents, the systems that it is for, and that it works on its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from build_tree import ROOT, configured, locked

import lynx_rt


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel in the tree of the C++ tests, so that little is compiled again."""
    folder, tree = tmp_path_factory.mktemp("wheel"), configured("plain")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    options = f"{os.environ.get('CMAKE_ARGS', '')} -DLYNX_RT_LIBRARY=ON"  # as for the C++ tests
    for old in (ROOT / "build").glob("lib*"):  # setuptools would pack what earlier builds left there
        shutil.rmtree(old)
    facts = ROOT / "lynx_rt.egg-info"
    kept = facts.exists()
    with locked(tree):
        run(*build, LYNX_RT_BUILD_DIR=str(tree), CMAKE_ARGS=options, LYNX_RT_TESTING="0")
    if not kept:  # else lynx_rt would count as installed where only the source tree is on the path
        shutil.rmtree(facts, ignore_errors=True)
    [file] = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_wheel(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.startswith(f"lynx_rt-{lynx_rt.__version__}-cp3")
    names = zipfile.ZipFile(wheel).namelist()
    assert not any("_C_testing" in name and name.endswith(".so") for name in names)
    assert sum(name.startswith("lynx_rt/_C.") and name.endswith(".so") for name in names) == 1
    assert {"lynx_rt/py.typed", "lynx_rt/_C.pyi", "lynx_rt/models/lynx-nano/config.json"} <= {*names}
    assert not any(name.startswith(("tests/", "csrc/", "tools/")) for name in names)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, wheel)
    out = run(sys.executable, "-m", "lynx_rt", "generate", "-p", "Q: 12 times 22 = ?\nA:", PYTHONPATH=str(tmp_path))
    assert "264" in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_wheel_needs_only_the_system(wheel: Path) -> None:
    """auditwheel names a manylinux tag only for a wheel that links nothing but what every Linux of that age has."""
    out = run(sys.executable, "-m", "auditwheel", "show", wheel)
    assert '"manylinux_2_' in out, out
