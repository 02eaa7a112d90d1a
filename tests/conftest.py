"""Fixtures of all Python tests: the shipped model, and an engine on it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from lynx_rt import Engine

# Started in the background by a script, this process ignores Ctrl-C, and so do those that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.load_profile("deterministic")


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.option.markexpr == "not slow and not gpu":
        return 'fast tier; everything: tools/test.sh --all, or pytest -m ""'
    return None


@pytest.fixture(scope="session")
def nano_path() -> str:
    """Returns the folder of lynx-nano."""
    import lynx_rt

    return lynx_rt.shipped_model()


@pytest.fixture(scope="session")
def nano(nano_path: str) -> Iterator[Engine]:
    """An engine on lynx-nano with default options. Tests leave nothing running and the policy as it was."""
    from lynx_rt import Engine

    with Engine(nano_path) as engine:
        yield engine
