"""The dashboard and the alerts name metrics that a live server has, and promtool accepts them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from metered import Served, samples, serve_all

from lynx_rt import _C, Engine, SamplingParams
from lynx_rt.server import metric_names as names
from lynx_rt.server.metrics import Metrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "lynx_rt.json").read_text())
PROMTOOL = shutil.which("promtool")
WORDS = {"and", "or", "unless", "offset", "bool"}


@pytest.fixture(scope="module")
def exposed(nano_path: str, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the samples of a server that has seen everything."""
    experts = str(tmp_path_factory.mktemp("experts") / "experts")
    _C.pack_experts(nano_path, experts)
    options = {"expert_file": experts, "expert_memory": 0.5, "expert_selection": "slo:tpot_ms=20"}
    with Engine(nano_path, max_num_seqs=8, **options) as engine:
        metrics = Metrics(engine, "nano")
        params = SamplingParams(temperature=0, max_tokens=8)
        serve_all(engine, metrics, [Served("Q: 12 times 22 = ?\nA:", params) for _ in range(2)])
        engine.add_request("Q: 1 + 1 = ?\nA:", params)
        while engine.has_unfinished_requests():
            engine.step()
            metrics.on_step()
        metrics.on_http("/v1/completions", "POST", 200, 0.1)
        metrics.on_tool_parse_failure("hermes")
        metrics.on_grammar_compile(0.1)
        metrics.set_event_loop_lag(0)
        metrics.set_startup_seconds("load", 1)
        metrics.set_memory_bandwidth(1e10)
        metrics.set_queue_limit(100)
        return {name for name, _ in samples(metrics)}


def metric_names(expression: str) -> set[str]:
    """Returns the metrics that a PromQL expression reads."""
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression)
    text = re.sub(r"\b(by|on|ignoring|group_left|group_right|without)\s*\([^)]*\)", " ", text)
    found = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\w*\s*\()", text)
    return {name for name in found if name not in WORDS}


def expressions() -> Iterator[str]:
    """Yields the queries of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["expr"]


def alerts() -> list[str]:
    """Returns the expressions of the rules: of one line, or of a block behind "|"."""
    found = re.findall(r"^ +expr: (?:\|\n((?: {10,}.*\n)+)|(.*)\n)", RULES.read_text(), re.MULTILINE)
    return [block or line for block, line in found]


def test_metric_names_are_found() -> None:
    text = 'sum by (le) (rate(a:b_total{c="d"}[5m])) / on (e) group_left (f) g > 0 and time() - h offset 5m > 3e4'
    assert metric_names(text) == {"a:b_total", "g", "h"}


def test_dashboard_names_metrics_that_exist(exposed: set[str]) -> None:
    used = set().union(*(metric_names(expression) for expression in expressions()))
    assert len(used) > 40
    assert used - exposed == set()
    queries = [variable["definition"] for variable in DASHBOARD["templating"]["list"]]
    assert all(re.match(r"label_values\((\w+:\w+)", query)[1] in exposed for query in queries)  # type: ignore[index]


def test_alerts_name_metrics_that_exist(exposed: set[str]) -> None:
    assert len(alerts()) == RULES.read_text().count("- alert:") == 8
    used = set().union(*(metric_names(expression) for expression in alerts()))
    assert len(used) >= 12
    assert used - exposed == set()


def test_dashboard_can_be_imported_anywhere() -> None:
    """It asks for its data source, and every query is limited by the variables and steps as the graph does."""
    assert DASHBOARD["uid"] == "lynx-rt" and DASHBOARD["id"] is None and DASHBOARD["schemaVersion"] >= 36
    [given] = DASHBOARD["__inputs"]
    assert (given["name"], given["pluginId"]) == ("DS_PROMETHEUS", "prometheus")
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["job", "instance", "model_name"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    titles = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert titles == ["Traffic", "Latency", "Queue and KV cache", "Experts", "Bandwidth and time", "Errors and health"]
    for panel in panels:
        if panel["type"] != "row":
            assert panel["description"] and panel["datasource"]["uid"] == "${DS_PROMETHEUS}"
    for expression in expressions():
        selectors = re.findall(r"\{([^}]*)\}", expression)
        assert selectors and all(text.startswith('job=~"$job",instance=~"$instance"') for text in selectors), expression
        assert set(re.findall(r"\[([^\]]*)\]", expression)) <= {"$__rate_interval"}, expression


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_rules_and_queries(tmp_path: Path) -> None:
    """Also the dashboard's queries, as rules; and each alert fires when it should and not otherwise."""

    def promtool(*arguments: Any) -> None:
        done = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    promtool("check", "rules", RULES)
    queries = [text.replace("$__rate_interval", "1m") for text in expressions()]
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "queries.yml")
    cases = (Path(__file__).parent / "rule_cases.yml").read_text().replace("{rules}", str(RULES), 2)
    (tmp_path / "cases.yml").write_text(cases)
    promtool("test", "rules", tmp_path / "cases.yml")


def test_page_lists_the_metrics() -> None:
    """Name, type and labels of every metric stand in docs/metrics.md, and nothing else does."""
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if re.match(r"\| `(vllm|lynx|http)[:_]", line)]
    listed = {row[0].strip("| `"): (row[1], row[2]) for row in rows}
    table = [*names.ENGINE, *names.REQUESTS, *names.SERVER]
    assert len(listed) == len(rows) == len(table)
    for metric in table:
        kind, labels = listed[metric.name]
        assert kind == metric.kind
        own = {label for label in metric.labels if label not in names.REPLICA}
        assert set(re.findall(r"\w+", labels.replace("model_name (no engine)", ""))) == own, metric.name


def test_examples_of_the_page_can_be_asked(exposed: set[str]) -> None:
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `lynx:")]
    assert all(len(row) == 5 for row in rows), "every lynx: metric has an example"
    for row in rows:
        [query] = re.findall(r"^`([^`]+)`", row[4])
        name = row[0].strip("| `")
        assert any(used.startswith(name) for used in metric_names(query)), (
            f"the example of {name} is about another metric"
        )
        assert metric_names(query) <= exposed, query
