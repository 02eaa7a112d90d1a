"""`lynx-rt bench serve`: against servers with known answers, and against lynx_rt's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_server import Script, fake_server, json_answer, stream

from lynx_rt.bench.traces import Arrival, write_trace
from lynx_rt.cli.main import main

TASKS = str(Path(__file__).resolve().parents[2] / "bench" / "tasks")


def models(route: str) -> Script | None:
    return json_answer({"data": [{"id": "fake", "max_model_len": 100}]}) if route == "/v1/models" else None


def about(route: str) -> Script | None:
    """Answers what is asked about the server, which has no metrics; None for a completion."""
    return json_answer({}, 404) if route == "/metrics" else models(route)


def test_a_server_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep over rates and concurrencies: a file per point with vLLM's names; errors are counted and named."""
    sent: list[dict] = []

    def answer(route: str, body: dict) -> Script:
        if known := about(route):
            return known
        sent.append(body)
        bad = len(sent) % 5 == 0
        return json_answer({"error": {"message": "full"}}, 503) if bad else stream([0.0] * body["max_tokens"])

    with fake_server(answer) as url:
        argv = [
            "bench",
            "serve",
            "--base-url",
            f"{url}/v1",
            "--vocab-size",
            "50",
            "--num-prompts",
            "10",
            "--num-warmups",
            "0",
        ]
        argv += ["--request-rate", "200,inf", "--max-concurrency", "1,4", "--output-len", "3", "--input-len", "8"]
        argv += ["--goodput", "ttft:60000", "--result-dir", str(tmp_path), "--save-detailed"]
        assert main([*argv, "--extra-body", '{"top_k": 1}']) == 0
    text = capsys.readouterr().out
    assert "8 failed: HTTP 503: full" not in text and "2 failed: HTTP 503: full" in text and "experts" not in text
    assert len(sent) == 1 + 40  # the ready check
    assert all(len(body["prompt"]) == 8 and body["top_k"] == 1 and body["ignore_eos"] for body in sent)
    files = sorted(tmp_path.iterdir())
    points = [json.loads(file.read_text()) for file in files]
    assert [(p["request_rate"], p["max_concurrency"]) for p in points] == [
        (200.0, 1),
        (200.0, 4),
        ("inf", 1),
        ("inf", 4),
    ]
    for point in points:
        assert (point["backend"], point["model_id"], point["num_prompts"]) == ("openai", "fake", 10)
        assert (point["completed"], point["failed"], point["total_output_tokens"]) == (8, 2, 24)
        assert point["lynx"] is None and len(point["ttfts"]) == 10 and point["errors"].count("HTTP 503: full") == 2
        assert point["request_goodput"] == pytest.approx(point["request_throughput"])


def test_a_trace_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lengths are divided by the factor, which the output states, and cut to the server's context of 100 tokens."""
    sent: list[dict] = []

    def answer(route: str, body: dict) -> Script:
        if known := about(route):
            return known
        sent.append(body)
        return stream([0.0] * body["max_tokens"])

    write_trace(tmp_path / "t.csv", [Arrival(0.0, 320, 32), Arrival(0.2, 16000, 64)])
    with fake_server(answer) as url:
        argv = [
            "bench",
            "serve",
            "--base-url",
            url,
            "--vocab-size",
            "50",
            "--trace",
            str(tmp_path / "t.csv"),
            "--trace-scale",
            "16",
        ]
        assert main([*argv, "--num-warmups", "0"]) == 0
        text = capsys.readouterr().out
        assert "lengths / 16" in text and " 10.00 " in text  # 2 requests, the last after 0.2 s
        assert [(len(body["prompt"]), body["max_tokens"]) for body in sent[1:]] == [(20, 2), (96, 4)]
        assert main([*argv, "--json", "--request-rate", "100"]) == 0
        assert json.loads(capsys.readouterr().out)["points"][0]["request_rate"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--base-url", "ftp://x"], "--base-url must be"),
        (["--base-url", "http://127.0.0.1:9", "--ready-timeout", "0.1"], "ConnectionRefusedError"),
        (["--base-url", "http://127.0.0.1:9", "--serve-args=--seed 1"], "leave out --base-url"),
        (["--serve-args=--no-such-option"], "the server ended: "),
        (["/no/such/model"], "/no/such/model"),
    ],
)
def test_mistakes(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *argv]) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--request-rate", "0"], ["--goodput", "itl:5"], ["--max-concurrency", "0"], ["--range-ratio", "1"]]
)
def test_usage(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["bench", "serve", *argv])
    assert error.value.code == 2


def test_own_server(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped model: lengths are exact, policies take turns, and what they read comes from the server's counters."""
    argv = ["bench", "serve", "--prompts", TASKS, "--num-prompts", "24", "--max-concurrency", "12", "--input-len", "40"]
    argv += [
        "--output-len",
        "12",
        "--selection",
        "topk,lynx",
        "--serve-args=--num-threads 2 --no-mixed-chunk",
        "--json",
    ]
    assert main(argv) == 0
    topk, lynx = json.loads(capsys.readouterr().out)["points"]
    for point in (topk, lynx):
        assert (point["completed"], point["failed"]) == (24, 0)
        assert (point["total_input_tokens"], point["total_output_tokens"]) == (24 * 40, 24 * 12)
        assert 0 < point["median_tpot_ms"] < point["median_e2el_ms"] and point["p99_ttft_ms"] > 0
        assert point["lynx"]["rows_per_step"] > 1 and point["lynx"]["bytes_per_token"] > 0
    assert (topk["selection"], topk["lynx"]["retained_mass"], topk["lynx"]["selected_rows"]) == (
        "topk",
        pytest.approx(1.0),
        0,
    )
    assert topk["lynx"]["experts_read"] == topk["lynx"]["union_before"]
    assert lynx["lynx"]["experts_read"] < 0.9 * lynx["lynx"]["union_before"]
    assert 0.5 < lynx["lynx"]["retained_mass"] < 1 and lynx["lynx"]["selected_rows"] > 0.5


def test_chat(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "bench",
        "serve",
        "--endpoint",
        "chat",
        "--prompts",
        TASKS,
        "--num-prompts",
        "4",
        "--output-len",
        "5",
        "--json",
    ]
    assert main(argv) == 0
    [point] = json.loads(capsys.readouterr().out)["points"]
    assert (point["completed"], point["total_output_tokens"]) == (4, 20)


def test_interrupt_prints_what_there_is() -> None:
    """Ctrl-C in the second point: a table with both, and the exit code of an interruption."""
    count = [0]

    def answer(route: str, body: dict) -> Script:
        if known := about(route):
            return known
        count[0] += 1
        return stream([0.0] if count[0] <= 6 else [60.0])  # the ready check, 4 of the first point, 1 of the second

    with fake_server(answer) as url:
        argv = [
            "bench",
            "serve",
            "--base-url",
            url,
            "--vocab-size",
            "9",
            "--num-prompts",
            "4",
            "--max-concurrency",
            "1,2",
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "lynx_rt", *argv, "--num-warmups", "0"],
            stdout=subprocess.PIPE,
            env={**os.environ},
            text=True,
        )
        end = time.monotonic() + 60
        while count[0] < 8 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    rows = [line.split() for line in text.splitlines() if line.startswith("-  ")]
    assert process.returncode == 130 and [row[2:4] for row in rows] == [["1", "4"], ["2", "1"]]
    assert "interrupted: the last row has the requests that had ended" in text
