"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import LiveServer, serving
from parrot import parrot_server


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server with default options. Tests leave nothing running."""
    with serving() as live:
        yield live


@pytest.fixture(scope="module")
def parrot(nano_path: str) -> Iterator[str]:
    """The URL of a server whose model answers with the last question. While it runs, so do those of all servers of this process."""
    with parrot_server(nano_path) as url:
        yield url
