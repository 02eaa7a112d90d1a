"""GET /v1/lynx/experts: windows of what steps read, and who may see them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from live_server import LiveServer, serving

from lynx_rt.engine.outputs import ExpertCounts
from lynx_rt.server.expert_windows import ExpertWindows
from lynx_rt.server.settings import Settings


class _Counting:
    """An engine of two layers and three experts, each step of which has four rows and reads expert 1."""

    def __init__(self, counts: bool = True) -> None:
        self.steps = 0
        self._shape = (2 if counts else 0, 3)

    def stats(self) -> Any:
        layer = type("Layer", (), {"layer": 5})
        return type("Stats", (), {"layers": [layer, layer]})

    def expert_counts(self) -> ExpertCounts:
        read = np.zeros(self._shape, np.int64)
        read[:, 1] = self.steps
        return ExpertCounts(self.steps, 4 * self.steps, read + self.steps, read)


def test_a_window_ends_once_it_has_enough_rows() -> None:
    engine = _Counting()
    windows = ExpertWindows(engine)  # type: ignore[arg-type]
    engine.steps = 31
    assert windows.look()["number"] == 0 and windows.look()["read"] == []
    engine.steps = 32
    first = windows.look()
    assert (first["number"], first["steps"], first["rows"], first["layers"]) == (1, 32, 128, [5, 5])
    assert first["read"] == [[0, 32, 0]] * 2 and first["wanted"] == [[32, 64, 32]] * 2
    engine.steps = 60
    assert windows.look() == first  # the same for all who ask, until the next has ended
    engine.steps = 100
    second = windows.look()
    assert (second["number"], second["steps"], second["read"]) == (2, 68, [[0, 68, 0]] * 2)


def test_a_device_that_does_not_count() -> None:
    assert not ExpertWindows(_Counting(counts=False)).counts_experts  # type: ignore[arg-type]
    assert ExpertWindows(_Counting()).counts_experts  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({}, True),
        ({"uds": "/tmp/s", "host": "0.0.0.0"}, True),
        ({"api_keys": ("a",)}, True),
        ({"host": "0.0.0.0", "api_keys": ("a",)}, True),
        ({"host": "0.0.0.0"}, False),
        ({"api_keys": ("a", "b")}, False),
        ({"batch_isolation": "group"}, False),
        ({"api_keys": ("a",), "batch_isolation": "key"}, False),
        ({"expert_counts": False}, False),
        ({"host": "0.0.0.0", "api_keys": ("a", "b"), "expert_counts": True}, True),
    ],
)
def test_who_may_see_counts(options: dict[str, Any], given: bool) -> None:
    assert Settings(model="x", served_model_names=("x",), **options).gives_expert_counts == given


def test_live_counts(server: LiveServer) -> None:
    assert "read" in server.client.get("/v1/lynx/experts").json()
    server.complete(prompt=["The"] * 4, max_tokens=60, ignore_eos=True)
    counts = server.client.get("/v1/lynx/experts").json()
    read, wanted = np.array(counts["read"]), np.array(counts["wanted"])
    assert counts["number"] >= 1 and counts["rows"] >= 128 and counts["layers"] == list(range(8))
    assert read.shape == (8, 32) and (read == wanted).all()  # topk
    assert (read.sum(axis=1) >= 4 * counts["steps"]).all() and read.max() <= counts["steps"]
    state = server.client.get("/v1/lynx/state").json()
    assert state["memory_bandwidth"] is None and state["can_set_selection"] is False


def test_refused_counts() -> None:
    with serving("--batch-isolation", "group") as server:
        answer = server.client.get("/v1/lynx/experts")
        assert answer.status_code == 403 and "--expert-counts" in answer.json()["error"]["message"]
