"""lynx_rt/_C.pyi agrees with the compiled module: names, arguments, defaults and types, as far as pybind11 reports them."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from lynx_rt import _C

STUB = ast.parse((Path(__file__).parents[2] / "lynx_rt" / "_C.pyi").read_text())
# pybind11's words for what a call takes or returns -> a stub's
WORDS = {
    r"typing\.SupportsInt \| typing\.SupportsIndex": "int",
    r"typing\.SupportsFloat \| typing\.SupportsIndex": "float",
    r"collections\.abc\.Sequence\[": "list[",
    r"(numpy\.typing|typing|lynx_rt\._C)\.": "",
    r"numpy\.": "np.",
}
VAGUE = {
    "object": "",
    "list": "list[",
    "dict": "dict[",
}  # a type without its items -> how the stub's, which has them, begins

Items = dict[str, ast.stmt]


def items_of(body: list[ast.stmt]) -> Items:
    """Definitions and annotated names by name."""
    found: Items = {}
    for item in body:
        if isinstance(item, (ast.ClassDef, ast.FunctionDef)):
            found[item.name] = item
        elif isinstance(item, ast.AnnAssign):
            found[ast.unparse(item.target)] = item
    return found


def members() -> list[tuple[str, ast.stmt, Any]]:
    """(name, in the stub, in the module) of each function and of each member of a class; None = it is in one of the two only."""
    pairs: list[tuple[str, ast.stmt, Any]] = []

    def add(prefix: str, stub: Items, real: dict[str, Any]) -> None:
        pairs.extend((prefix + name, stub.get(name), real.get(name)) for name in sorted(stub.keys() | real.keys()))

    stub = items_of(STUB.body)
    real = {name: value for name, value in vars(_C).items() if not name.startswith("_") or name == "__version__"}
    add("", stub, real)
    for name, item in stub.items():
        if isinstance(item, ast.ClassDef) and isinstance(real.get(name), type):
            held = {n: v for n, v in vars(real[name]).items() if not n.startswith("_") or n == "__init__"}
            if "__init__" in held and not held["__init__"].__doc__.startswith("__init__("):
                del held["__init__"]  # object's own: Python makes none of these
            add(f"{name}.", items_of(item.body), held)
    return pairs


def assert_same_type(stub: ast.expr | None, told: str) -> None:
    for pattern, word in WORDS.items():
        told = re.sub(pattern, word, told)
    said = "None" if stub is None else ast.unparse(stub)
    if said.startswith("Literal["):
        said = "str"
    assert said == told or (told in VAGUE and said.startswith(VAGUE[told])), f"the stub says {said}, the module {told}"


def assert_same_call(stub: ast.FunctionDef, signature: str) -> None:
    """signature: pybind11's, "name(argument: type = default, ...) -> type"."""
    text = re.sub(r"<[^>]*>|\S+ object at \w+", "...", signature)
    real = ast.parse(f"def {text}: ...").body[0]
    assert isinstance(real, ast.FunctionDef)
    assert stub.name == real.name
    assert [a.arg for a in stub.args.args] == [a.arg for a in real.args.args]
    assert len(stub.args.defaults) == len(real.args.defaults)
    assert (stub.args.kwarg is None) == (real.args.kwarg is None)
    for ours, theirs in zip(stub.args.args, real.args.args, strict=True):
        if ours.arg != "self":
            assert ours.annotation is not None and theirs.annotation is not None
            assert_same_type(ours.annotation, ast.unparse(theirs.annotation))
    assert stub.returns is not None and real.returns is not None
    assert_same_type(stub.returns, ast.unparse(real.returns))


@pytest.mark.parametrize(("name", "stub", "real"), members(), ids=lambda value: value if isinstance(value, str) else "")
def test_member(name: str, stub: ast.stmt | None, real: Any) -> None:
    assert stub is not None, f"_C.pyi lacks {name}"
    assert real is not None, f"the module lacks {name}"
    if isinstance(stub, ast.ClassDef):
        assert isinstance(real, type)
    elif isinstance(real, property):
        told = real.fget.__doc__.partition(" -> ")[2].splitlines()[0]
        if real.fset is None:
            assert isinstance(stub, ast.FunctionDef)
            assert [ast.unparse(decorator) for decorator in stub.decorator_list] == ["property"]
            assert_same_type(stub.returns, told)
        else:
            assert isinstance(stub, ast.AnnAssign)
            assert_same_type(stub.annotation, told)
    elif isinstance(stub, ast.FunctionDef):
        assert stub.decorator_list == []
        assert_same_call(stub, real.__doc__.splitlines()[0])
    else:
        assert isinstance(stub, ast.AnnAssign) and type(real).__name__ == ast.unparse(stub.annotation)
