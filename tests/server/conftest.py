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
