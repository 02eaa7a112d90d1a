"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import LiveServer, serving


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server with default options. Tests leave nothing running."""
    with serving() as live:
        yield live


@pytest.fixture(scope="session")
def tool_server() -> Iterator[LiveServer]:
    """A server that reads tool calls as Hermes writes them, and reasoning in <think>. lynx-nano writes neither by itself."""
    with serving("--tool-parser", "hermes", "--reasoning-parser", "think") as live:
        yield live
