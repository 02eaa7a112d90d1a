"""Uses an installed lynx_rt in other projects: examples/cpp by find_package, and a compiler by pkg-config."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from build_tree import ROOT, install_prefix, run
from c_header import Header

import lynx_rt

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "cpp"
QUESTION = "Q: 12 times 22 = ?\nA:"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the example and returns the folder of its programs."""
    build = tmp_path_factory.mktemp("example")
    run(["cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={install_prefix()}"])
    run(["cmake", "--build", build, "--parallel", "2"])
    return build


@pytest.fixture(scope="module")
def expected(nano: lynx_rt.Engine) -> tuple[list[str], list[int]]:
    """Returns prompt ids as arguments, and the tokens that the Python engine generates from them."""
    params = lynx_rt.SamplingParams(temperature=0.0, max_tokens=32)
    [output] = nano.generate(QUESTION, params, use_tqdm=False)
    return [str(i) for i in output.prompt_token_ids], output.outputs[0].token_ids


@pytest.mark.parametrize("program", ["generate", "generate_static", "generate_c"])
def test_example(program: str, example: Path, nano_path: str, expected: tuple[list[str], list[int]]) -> None:
    prompt, tokens = expected
    assert [int(i) for i in run([example / program, nano_path, *prompt]).split()] == tokens


def test_streaming_example(example: Path, nano_path: str, expected: tuple[list[str], list[int]]) -> None:
    prompt, tokens = expected
    done = subprocess.run([example / "stream_c", nano_path, *prompt], capture_output=True, text=True, check=True)
    rows = [[float(number) for number in re.findall(r"-?[\d.]+", line)] for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == tokens
    assert all(len(row) == 6 and 0 >= row[1] >= row[3] >= row[5] for row in rows)  # greedy
    assert "stopped by token 2\n" in done.stderr and f"{len(tokens)} tokens in {len(tokens)} steps" in done.stderr
    assert len(re.findall(r"layer \d: 4.0 experts read per step", done.stderr)) == 8 and "info: " in done.stderr


@pytest.mark.parametrize("program", ["generate", "generate_static", "generate_c", "stream_c"])
@pytest.mark.parametrize(
    ("model", "tokens", "text"), [("/nowhere", ["1"], "/nowhere"), (None, ["-5"], "expected ids in [0, 4096)")]
)
def test_errors_cross_the_boundary(
    program: str, model: str | None, tokens: list[str], text: str, example: Path, nano_path: str
) -> None:
    done = subprocess.run([example / program, model or nano_path, *tokens], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert text in done.stderr and "error" in done.stderr


@pytest.mark.parametrize("linkage", ["shared", "static"])
def test_pkg_config(linkage: str, tmp_path: Path, nano_path: str, expected: tuple[list[str], list[int]]) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config on PATH")
    [folder] = install_prefix().glob("lib*/**/pkgconfig")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(folder)}

    def ask(*what: str) -> list[str]:
        return shlex.split(run(["pkg-config", *what, "lynx_rt"], env=environment))

    libraries = ask("--libs", "--static") if linkage == "static" else ask("--libs")
    if linkage == "static":
        libraries = ["-l:liblynx_rt.a" if flag == "-llynx_rt" else flag for flag in libraries]
    program = tmp_path / "generate"
    run(["c++", "-std=c++20", EXAMPLE / "generate.cc", "-o", program, *ask("--cflags"), *libraries])
    prompt, tokens = expected
    [libdir] = ask("--variable=libdir")
    output = run([program, nano_path, *prompt], env={**os.environ, "LD_LIBRARY_PATH": libdir})
    assert [int(i) for i in output.split()] == tokens
    assert ask("--modversion") == [lynx_rt.__version__]


def test_shared_library_exports_only_the_public_surface() -> None:
    [library] = install_prefix().glob("lib*/**/liblynx_rt.so")
    out = run(["nm", "-DC", "--defined-only", library])
    names = [line.split(maxsplit=2)[2] for line in out.splitlines() if line.split(maxsplit=2)[1] in "TDBR"]
    assert any(name.startswith("lynx_rt::Engine::create(") for name in names)
    strangers = [name for name in names if not name.startswith(("lynx_rt::Engine::", "lynx_rt::Error::", "lynx_rt_"))]
    assert not strangers
    declared = Header(install_prefix() / "include" / "lynx_rt" / "lynx_rt.h").functions
    assert sorted(name for name in names if name.startswith("lynx_rt_")) == sorted(declared)  # and not mangled
