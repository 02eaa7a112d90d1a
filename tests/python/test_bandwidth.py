"""The rate of reading is measured for large models on this machine only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lynx_rt import Engine
from lynx_rt.engine import bandwidth


def model(device: str, weight: int) -> Any:
    return SimpleNamespace(device=device, memory={"weight": weight})


def test_large_models_are_compared_with_plain_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_PROBE_BYTES", 8 << 20)
    for threads in (None, 1):
        rate = bandwidth.memory_bandwidth(model("cpu avx2, 2 threads, bfloat16", 2 << 30), threads)
        assert rate is not None and 1e7 < rate < 1e14, "bytes per second"


def test_others_are_not(nano: Engine) -> None:
    assert bandwidth.memory_bandwidth(nano, None) is None
    assert bandwidth.memory_bandwidth(model("cuda:0 NVIDIA H100, bfloat16", 2 << 30), None) is None
