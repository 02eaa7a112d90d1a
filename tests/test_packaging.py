"""Contents, requirements and imports of an installed lynx_rt."""

import importlib
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import lynx_rt

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "tokenizers", "jinja2", "rich", "tqdm", "numpy", "asyncio", "lynx_rt._C")


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, lynx_rt; print([m for m in {HEAVY} if m in sys.modules])"
    assert python("-c", code) == "[]\n"


def test_an_engine_never_imports_torch() -> None:
    code = (
        "import sys, lynx_rt\n"
        "with lynx_rt.Engine(lynx_rt.shipped_model()) as engine:\n"
        "    print(engine.generate('Q: 12 times 22 = ?\\nA:')[0].text)\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert python("-c", code) == " 264\n[]\n"


def test_readme_example() -> None:
    """The README's lines of Python run as they stand. tests/server/test_documents.py runs those that need a server."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [code] = [block for block in blocks if "import lynx_rt" in block]
    out = python("-c", code)
    assert "A:  264\n" in out and "A:  1023\n" in out
    assert re.search(r"\d experts read per layer and step, \d\.\d without selection\n$", out)


def test_python_example() -> None:
    out = python(str(ROOT / "examples" / "python" / "generate.py"))
    assert out.count("264") == 3 and "of 32" in out


def test_env_command() -> None:
    facts = json.loads(python("-m", "lynx_rt", "env", "--json"))
    assert facts["version"] == lynx_rt.__version__
    assert facts["isa"] in facts["supported_isas"]


def test_versions_agree() -> None:
    version = lynx_rt._C.build_info()["version"]
    assert lynx_rt._C.__version__ == version
    header = (ROOT / "csrc" / "include" / "lynx_rt" / "version.h").read_text()
    parts = re.findall(r"LYNX_RT_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    assert ".".join(parts) == version and f'LYNX_RT_VERSION "{version}"' in header


@pytest.fixture
def distribution() -> metadata.Distribution:
    try:
        return metadata.distribution("lynx_rt")
    except metadata.PackageNotFoundError:
        pytest.skip("lynx_rt is not installed: this is a source tree")


def test_needs_no_torch(distribution: metadata.Distribution) -> None:
    plain = [need for need in distribution.requires or [] if "extra ==" not in need]
    assert plain and not any(re.match(r"(torch|transformers|nvidia|cmake|pybind11)\b", need) for need in plain)
    build_needs = (ROOT / "pyproject.toml").read_text().split("[project]")[0]
    assert "torch" not in build_needs


def test_installed_files(distribution: metadata.Distribution) -> None:
    """Every module of the source tree, the compiled one, the types and the model."""
    if distribution.read_text("direct_url.json") and json.loads(distribution.read_text("direct_url.json")).get(
        "dir_info", {}
    ).get("editable"):
        pytest.skip("an editable install lists no files")
    installed = {str(file) for file in distribution.files or []}
    expected = {str(file.relative_to(ROOT)) for file in (ROOT / "lynx_rt").rglob("*.py")}
    expected |= {"lynx_rt/py.typed", "lynx_rt/_C.pyi"}
    expected |= {str(file.relative_to(ROOT)) for file in (ROOT / "lynx_rt/server/static").iterdir()}
    expected |= {f"lynx_rt/models/lynx-nano/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert expected <= installed, sorted(expected - installed)
    assert any(re.fullmatch(r"lynx_rt/_C\..*\.so", file) for file in installed)
    # Only the package itself: no tests, no build output.
    assert {file.split("/")[0] for file in installed if not file.startswith("..")} <= {
        "lynx_rt",
        f"lynx_rt-{lynx_rt.__version__}.dist-info",
    }


@pytest.mark.parametrize("name", ["_C", "_C_testing"])
def test_module_exports_only_its_init_function(name: str) -> None:
    """If it exported more, its copy of the library could mix with the other module's, or with a liblynx_rt.so, in the same process."""
    file = importlib.import_module(f"lynx_rt.{name}").__file__
    lines = subprocess.run(["nm", "-D", "--defined-only", file], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in lines.stdout.splitlines()] == [f"PyInit_{name}"]
