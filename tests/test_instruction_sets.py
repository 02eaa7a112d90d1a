"""Reports the instruction sets of the other tests: all that this machine has, and a skipped test for each that it lacks."""

import pytest
from isas import ISAS, NAMES, SUPPORTED

from lynx_rt import _C_testing


def test_all_that_the_engine_supports_are_tested() -> None:
    assert set(SUPPORTED) <= set(NAMES) and "scalar" in ISAS


@pytest.mark.parametrize("name", NAMES)
def test_present(name: str) -> None:
    if name not in ISAS:
        pytest.skip(f"{name}: not on this machine, so no test runs on it")
    assert _C_testing.Backend(isa=name) is not None
