"""What `lynx-rt inspect` says before loading of each value of `quantization` is what an engine has after loading, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import family_models_plain
import family_models_special
import pytest
from family_parity import engine, write

from lynx_rt import _C
from lynx_rt.cli import inspect
from lynx_rt.cli.main import main

ROWS = family_models_plain.ROWS + family_models_special.ROWS
FIRST = list({row.model_type: row for row in reversed(ROWS)}.values())  # of each family


def bytes_of_a_decode_step(e: _C.Engine) -> int:
    """Bytes of weights that a step of one row reads, by the engine's own count; K and V are left out."""
    params = _C.SamplingParams()
    params.max_tokens, params.ignore_eos = 3, True
    e.add_request([1], params)
    e.step()
    e.reset_stats()
    e.step()
    return int(e.stats()["bytes_read"]) - 2 * int(e.model_info()["kv_bytes_per_token"])  # of two tokens


@pytest.mark.parametrize("row", FIRST, ids=lambda row: row.id)
def test_an_engine_has_the_bytes_that_were_foretold(row: Any, tmp_path: Any) -> None:
    path = write(row, tmp_path)
    options = _C.inspect(path)["options"]
    assert [option["quantization"] for option in options] == ["none", "int8", "int4"]
    for option in options:
        e = engine(path, quantization=option["quantization"], **row.options)
        info = e.model_info()
        assert option["weight_bytes"] == info["weight_bytes"]
        assert option["mapped_weight_bytes"] == info["mapped_weight_bytes"]
        assert option["anonymous_weight_bytes"] == info["weight_bytes"] - info["mapped_weight_bytes"]
        assert option["bytes_per_token"] == bytes_of_a_decode_step(e)


def test_weights_from_the_cache_are_mapped(nano_path: str, tmp_path: Any) -> None:
    made, found = (
        _C.Engine(nano_path, quantization="int4", quantization_cache=str(tmp_path)).model_info() for _ in range(2)
    )
    assert made["mapped_weight_bytes"] < made["weight_bytes"] == found["weight_bytes"] == found["mapped_weight_bytes"]


def test_tokens_per_second_are_bounded_by_the_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nano_path: str
) -> None:
    """Only for weights that do not stay in caches."""
    sizes = {option["quantization"]: option["weight_bytes"] for option in _C.inspect(nano_path)["options"]}
    monkeypatch.setattr(inspect, "is_bound_by_memory", lambda count: count >= sizes["int8"])
    monkeypatch.setattr(inspect, "measure_bandwidth", lambda: 5e9)
    assert main(["inspect", nano_path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["read_bytes_per_s"] == 5e9
    speeds = {option["quantization"]: option["max_tokens_per_s"] for option in facts["options"]}
    of_none = 5e9 / facts["options"][0]["bytes_per_token"]
    assert speeds["none"] == pytest.approx(of_none) and speeds["none"] < speeds["int8"] and speeds["int4"] is None
    assert main(["inspect", nano_path]) == 0
    out = capsys.readouterr().out
    assert "5 GB/s" in out and "options" not in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("none ", "int8 ", "int4 "))}
    assert rows["none"].endswith(f" {of_none:.3g}") and rows["int4"].endswith(" -")
