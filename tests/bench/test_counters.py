"""What a point of a load test says about expert selection, from /metrics."""

from __future__ import annotations

import asyncio

import pytest
from fake_server import fake_server, head, json_answer

from lynx_rt.bench.client import Target
from lynx_rt.bench.counters import difference, parse, read

PAGE = """# HELP lynx:moe_rows_total Rows.
# TYPE lynx:moe_rows_total counter
lynx:moe_rows_total{{engine="0",layer="0",model_name="a \\"b\\", {{c}}"}} {rows}
lynx:moe_rows_total{{engine="0",layer="1",model_name="m"}} {rows}
lynx:moe_layer_steps_total{{layer="all"}} {steps}
lynx:moe_experts_read_total{{layer="all"}} {read}
lynx:moe_experts_union_before_total{{layer="all"}} {union}
lynx:moe_retained_mass_total{{layer="all"}} {mass}
lynx:bytes_read_total{{kind="experts"}} {bytes}
lynx:bytes_read_total{{kind="kv"}} 1e3
lynx:decode_rows_total{{mode="selected"}} {rows}
lynx:decode_rows_total{{mode="mixed_step"}} {steps}
lynx:steps_total{{kind="mixed"}} {steps}
lynx:step_seconds_total{{phase="other"}} {steps}
vllm:generation_tokens_total{{engine="0"}} {rows}
vllm:prompt_tokens_total{{engine="0"}} 7
"""


def page(**values: float) -> str:
    return PAGE.format(**values)


BEFORE = page(rows=10, steps=5, read=50, union=60, mass=9, bytes=1000)
AFTER = page(rows=30, steps=15, read=100, union=160, mass=45, bytes=5000)


def test_differences() -> None:
    change = difference(parse(BEFORE), parse(AFTER))
    assert change == pytest.approx(
        {
            "experts_read": 50 / 10,
            "union_before": 100 / 10,
            "retained_mass": 36 / 40,
            "rows_per_step": 40 / 10,
            "selected_rows": 20 / 30,
            "bytes_per_token": 4000 / 20,
            "step_ms": 1000.0,
        }
    )
    assert difference({}, {}) is None
    assert set(difference(parse(AFTER), parse(AFTER)).values()) == {0.0}


@pytest.mark.parametrize(
    "answer", [json_answer({}, 404), [(0, head(extra="Connection: close") + b"go_gc 1\n"), (0, b"")]]
)
def test_other_servers_have_none(answer: list) -> None:
    with fake_server(lambda route, body: answer) as url:
        assert asyncio.run(read(Target.parse(url))) == {}
