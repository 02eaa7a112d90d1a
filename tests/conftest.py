"""Fixtures of all Python tests: the shipped model, and an engine on it."""

from __future__ import annotations

import re
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


# Files that compile or compute for a minute and more start first, so that no process ends long after the others.
LONGEST = [
    "test_simt.py",
    "test_sass.py",
    "test_nvcc.py",
    "test_cpp.py",
    "test_arm.py",
    "test_consumer.py",
    "test_quality_gate.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONGEST)))


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.option.markexpr == "not slow and not gpu":
        return 'fast tier; everything: tools/test.sh --all, or pytest -m ""'
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which instruction sets the tests ran on, by the parameter of their names, and which they could not."""
    try:
        from isas import NAMES, SUPPORTED
    except ImportError:  # lynx_rt is not built
        return
    of_tests = [set(re.split(r"[\[\]-]", report.nodeid)) for report in terminalreporter.stats.get("passed", [])]
    ran = {name: sum(name in parts for parts in of_tests) for name in SUPPORTED}
    if not any(ran.values()):
        return
    tested = ", ".join(f"{name} ({count} tests)" for name, count in ran.items())
    absent = ", ".join(name for name in NAMES if name not in SUPPORTED)
    terminalreporter.write_line(f"instruction sets: {tested}; not on this machine: {absent or 'none'}")


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
