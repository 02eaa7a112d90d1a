"""Reports the instruction sets of the other tests: all that this machine has, and a skipped test for each that it lacks."""

import pytest
from isas import ISAS, NAMES, OF_ARCHITECTURE, SUPPORTED

from lynx_rt import _C_testing
from lynx_rt.errors import UnsupportedModelError, ValidationError


def test_all_that_the_engine_supports_are_tested() -> None:
    assert set(SUPPORTED) <= set(OF_ARCHITECTURE) <= set(NAMES) and "scalar" in ISAS


@pytest.mark.parametrize("name", OF_ARCHITECTURE)
def test_present(name: str) -> None:
    if name not in ISAS:
        pytest.skip(f"{name}: not on this machine, so no test runs on it")
    assert _C_testing.Backend(isa=name) is not None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ISAS])
def test_absent(name: str) -> None:
    """The error says what this CPU has."""
    with pytest.raises(
        UnsupportedModelError, match=f"^isa: this CPU does not support {name}; it supports {', '.join(SUPPORTED)}$"
    ):
        _C_testing.Backend(isa=name)


def test_unknown() -> None:
    with pytest.raises(ValidationError, match=f'^isa: expected one of {", ".join(NAMES)}; got "sse2"$'):
        _C_testing.Backend(isa="sse2")
