"""Rules for includes, imports and the length of files."""

import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
# folder -> the folders that its files may include from, beside itself and the public headers
ABOVE = {
    "base": set(),
    "checkpoint": {"base"},
    "routing": {"base"},
    "tiers": {"base"},
    "backend": {"base", "routing", "tiers"},
    "model": {"base", "checkpoint", "routing", "tiers", "backend"},
    "research": {"base", "checkpoint", "routing", "tiers", "backend", "model"},
    "engine": {"base", "checkpoint", "routing", "tiers", "backend", "model", "research"},
    "python_bindings": {"base", "checkpoint", "routing", "tiers", "backend", "model", "research", "engine"},
}
# folder of lynx_rt -> the folders that its modules may import from, beside itself and the modules at the top. lynx_rt/__init__.py,
# which offers the public names, stands above all but cli.
PYTHON_ABOVE = {
    "": set(),
    "text": set(),
    "vision": set(),
    "engine": {"text", "vision"},
    "research": {"text", "engine"},
    "server": {"text", "engine"},
    "integrations": {"text", "engine", "server"},
    "bench": set(),
    "cli": {"text", "engine", "research", "server", "bench"},
}
MAX_LINES = 450
GENERATED = {"model/family_list.inc"}  # by CMakeLists.txt
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)
CODE = {".h", ".cc", ".cu", ".cuh"}
# The precompiled headers of CMakeLists.txt, with which a file compiles that does not include what it uses -> names from them.
PRECOMPILED = {
    "algorithm": r"std::(?:stable_|partial_)?sort\(|std::(?:min|max|clamp|(?:min|max)_element|nth_element|find(?:_if)?|any_of|all_of"
    r"|none_of|copy(?:_n|_if)?|fill(?:_n)?|count(?:_if)?|(?:low|upp)er_bound|transform|reverse|rotate|remove_if|unique|equal)\(",
    "cmath": r"std::(?:exp2?|expm1|log2?|log1p|sqrt|pow|isfinite|isnan|isinf|l?l?round|l?rint|nearbyint|floor|ceil|ldexp|frexp|tanh"
    r"|fma|cos|sin|signbit)\(|\b(?:INFINITY|NAN)\b",
    "cstdint": r"\bu?int(?:8|16|32|64|ptr)_t\b",
    "map": r"std::(?:multi)?map\b",
    "memory": r"std::(?:(?:unique|shared|weak)_ptr|make_unique|make_shared)\b",
    "optional": r"std::(?:optional|nullopt)\b",
    "span": r"std::span\b",
    "string": r"std::(?:string|to_string)\b",
    "vector": r"std::vector\b",
}


def sources() -> list[Path]:
    folders = [CSRC, ROOT / "python_bindings"]
    return sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in CODE)


def layer(file: Path) -> str:
    return file.relative_to(CSRC).parts[0] if file.is_relative_to(CSRC) else "python_bindings"


def includes(file: Path) -> list[tuple[str, str]]:
    """Returns (quote, what is included) of each #include."""
    return INCLUDE.findall(file.read_text())


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", sources(), ids=name)
def test_includes_point_upwards(file: Path) -> None:
    own = layer(file)
    for quote, target in includes(file):
        if quote == "<":
            continue
        top = target.split("/")[0]
        if own == "include":
            assert top == "lynx_rt", f"a public header includes {target}"
        elif top == "lynx_rt":
            assert own in ("research", "engine", "python_bindings") or target in (
                "lynx_rt/error.h",
                "lynx_rt/sampling_params.h",
            ), target
        elif "/" in target:
            assert (CSRC / target).is_file() or target in GENERATED, f"{target} does not exist"
            assert top == own or top in ABOVE[own], f"{own} must not include {target}"
        else:
            assert (file.parent / target).is_file(), f"{target} does not exist"


@functools.cache
def system_headers(file: Path) -> frozenset[str]:
    """Returns the headers in angle brackets that a file includes, itself and through ours."""
    found = set()
    for quote, target in includes(file):
        places = [folder / target for folder in (CSRC, CSRC / "include", file.parent)]
        own = next((place for place in places if quote == '"' and place.is_file()), None)
        found |= (
            system_headers(own) if own else {"cstdint" if target == "stdint.h" else target}
        )  # <stdint.h>: the header for C
    return frozenset(found)


def test_precompiled_headers_are_included() -> None:
    listed = re.search(r"set\(common_headers (.*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert listed and set(re.findall(r"<(\w+)>", listed[1])) == set(PRECOMPILED)
    missing = []
    for file in sources():
        code = re.sub(r'//.*|"(?:\\.|[^"\\\n])*"', "", file.read_text())
        for header, names in PRECOMPILED.items():
            if header not in system_headers(file) and (used := re.search(names, code)):
                missing.append(f"{name(file)} uses {used[0]} without <{header}>")
    assert not missing, "\n".join(missing)


def test_includes_have_no_circle() -> None:
    graph = {}
    for file in sources():
        quoted = [target for quote, target in includes(file) if quote == '"' and target not in GENERATED]
        roots = {target: CSRC / "include" if target.startswith("lynx_rt/") else CSRC for target in quoted}
        graph[name(file)] = [name(roots[t] / t if "/" in t else file.parent / t) for t in quoted]
    assert circle(graph) == []


def circle(graph: dict[str, list[str]]) -> list[str]:
    """Returns the nodes of one circle, [] if there is none. graph: node -> the nodes that it needs."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def modules() -> dict[str, Path]:
    files = sorted((ROOT / "lynx_rt").rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(file: Path) -> list[str]:
    """Returns the modules of lynx_rt that a file imports anywhere: at its top, in a function, for type checkers only."""
    known, found = modules(), []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name(file)}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [full if full in known or full == "lynx_rt._C" else str(node.module) for full in names]
    return sorted({module for module in found if module in known})


def folder(module: str) -> str:
    """Returns the module's folder in lynx_rt, "" = none."""
    inside = modules()[module].relative_to(ROOT / "lynx_rt").parts
    return inside[0] if len(inside) > 1 else ""


@pytest.mark.parametrize("module", modules())
def test_imports_point_upwards(module: str) -> None:
    own = folder(module)
    for target in imports(modules()[module]):
        if module == "lynx_rt":
            assert folder(target) != "cli", f"{module} must not import {target}"
        elif module == "lynx_rt.__main__":
            assert target == "lynx_rt.cli.main"
        elif target == "lynx_rt":
            assert own == "cli", f"{module} imports a public name by way of lynx_rt"
        else:
            assert folder(target) in {own, "", *PYTHON_ABOVE[own]}, f"{module} must not import {target}"


def test_imports_have_no_circle() -> None:
    assert circle({module: imports(file) for module, file in modules().items()}) == []


def test_circles_are_found() -> None:
    assert circle({"a": ["b"], "b": ["c"], "c": []}) == []
    assert set(circle({"a": ["b"], "b": ["c"], "c": ["b"]})) == {"b", "c"}


@pytest.mark.parametrize("file", [file for file in sources() if "cuda" not in file.parts], ids=name)
def test_cuda_stays_in_its_folder(file: Path) -> None:
    if layer(file) != "backend":
        assert not any(target.startswith(("backend/cpu/kernels", "backend/cuda")) for _, target in includes(file))
    assert not any(re.match(r"(cuda|cublas|nvrtc|cub/|cooperative_groups)", target) for _, target in includes(file))


def test_one_file_includes_the_json_library() -> None:
    users = [name(file) for file in sources() if any(target.startswith("nlohmann") for _, target in includes(file))]
    assert users == ["csrc/checkpoint/json.cc"]


def test_library_neither_prints_nor_ends_the_process() -> None:
    wrong = re.compile(r"std::(cout|cerr|abort|exit|terminate)|\b(printf|fprintf|puts|_exit|assert)\(")
    for file in sources():
        found = [line for line in file.read_text().splitlines() if wrong.search(line.split("//")[0])]
        if layer(file) != "include":  # lynx_rt.h shows a program in its comment
            assert not found, f"{name(file)}: {found}"


def test_files_are_short() -> None:
    python = [file for file in (ROOT / "lynx_rt").rglob("*.py*") if file.suffix in (".py", ".pyi")]
    lengths = {name(file): len(file.read_text().splitlines()) for file in [*sources(), *python]}
    assert {file: lines for file, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_source_is_built() -> None:
    """A .cc or .cu file that no build file names is dead code; the build finds families by itself, under their names."""
    files = [ROOT / "CMakeLists.txt", CSRC / "install.cmake", CSRC / "backend" / "devices.cmake"]
    named = "".join(file.read_text() for file in files)
    for file in sources():
        if file.parent.name == "families":
            assert file.suffix == ".cc" and f"const Family& {file.stem}_family()" in file.read_text()
        elif file.suffix in (".cc", ".cu"):
            # Kernels of one instruction set are listed with their flags: "NAME BASE [FLAG...]".
            assert name(file) in named or f'"{file.stem} ' in named, f"{name(file)} is in no build file"
