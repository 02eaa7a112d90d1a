"""The `lynx-rt` command: results on stdout, exit codes, and what the measuring commands report."""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lynx_rt
from lynx_rt import ValidationError
from lynx_rt.cli.main import main
from lynx_rt.cli.options import format_bytes, format_table, selections
from lynx_rt.research.eval import Item, is_correct, load_items

SUM = "Q: 12 times 22 = ?\nA:"


def run(*argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lynx_rt", *argv], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def test_import_is_light() -> None:
    code = (
        "import sys, lynx_rt; print([m for m in ('numpy', 'tokenizers', 'jinja2', 'tqdm', 'rich') if m in sys.modules])"
    )
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n" and time.perf_counter() - start < 5


def test_generate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-p", SUM, "-p", SUM, "--no-stream"]) == 0
    assert capsys.readouterr().out == " 264\n 264\n"
    assert main(["generate", "-p", SUM, "--stream"]) == 0
    assert capsys.readouterr().out == " 264\n"
    assert main(["generate", "-p", SUM, "--json", "--max-tokens", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["finish_reason"] == "length" and len(record["token_ids"]) == 2 and record["prompt"] == SUM


def test_generate_with_options(capsys: pytest.CaptureFixture[str]) -> None:
    """The fields of SamplingParams, and the engine's length."""
    argv = ["generate", "-p", SUM.replace("\n", "\\n"), "--escape", "--json", "--logprobs", "2"]
    assert main(argv) == 0
    [record] = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["text"] == " 264" and record["prompt"] == SUM and len(record["logprobs"]) == len(record["token_ids"])
    for token_id, entry in zip(record["token_ids"], record["logprobs"]):
        assert entry["token_id"] == token_id and entry["rank"] == 1 and -1 < entry["logprob"] <= 0
        assert len(entry["top"]) == 2 and entry["top"][0]["token_id"] == token_id
    assert main([*argv, "--stop", "6"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["stop_reason"]) == (" 2", "6")
    many = ["generate", "-p", "Q: 1", "-e", "--stop", "\\n", "--json", "--ignore-eos", "--max-tokens", "40"]
    assert main(many) == 0 and json.loads(capsys.readouterr().out)["stop_reason"] == "\n"
    argv = ["generate", "-p", SUM, "--json", "--n", "3", "--temperature", "2", "--seed", "5", "--min-p", "0.0001"]
    argv += ["--max-tokens", "6", "--min-tokens", "6", "--top-k", "500", "--top-p", "0.99"]
    argv += ["--presence-penalty", "0.5", "--frequency-penalty", "0.5", "--repetition-penalty", "1.5"]
    assert main(argv) == 0
    first = capsys.readouterr().out
    records = [json.loads(line) for line in first.splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2] and len({record["text"] for record in records}) == 3
    assert all(record["num_generation_tokens"] == 6 for record in records)
    with lynx_rt.Engine(lynx_rt.shipped_model()) as engine:
        fields = {"max_tokens": 6, "min_tokens": 6, "top_k": 500, "top_p": 0.99, "n": 3, "temperature": 2, "seed": 5}
        fields |= {"min_p": 0.0001, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.5}
        [output] = engine.generate(SUM, fields)
    assert [completion.text for completion in output.outputs] == [record["text"] for record in records]
    assert main(["generate", "-p", SUM, "--ignore-eos", "--max-tokens", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_generation_tokens"] == 9
    assert main(["generate", "-p", SUM, "--max-model-len", "5"]) == 1
    assert "may have 5 (max_model_len)" in capsys.readouterr().err


def test_generate_from_file_and_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(SUM + "\n")
    assert main(["generate", "-f", str(file)]) == 0
    assert capsys.readouterr().out == " 264\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(SUM + "\n"))
    assert main(["generate", lynx_rt.shipped_model()]) == 0
    assert capsys.readouterr().out == " 264\n"
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf" + SUM.replace("\n", "\r\n").encode() + b"\r\n"))
    )
    assert main(["generate", "-f", "-"]) == 0
    assert capsys.readouterr().out == " 264\n"


def test_as_a_process() -> None:
    done = run("generate", "--selection", "topk", stdin=SUM)
    assert (done.returncode, done.stdout, done.stderr) == (0, " 264\n", "")
    version = run("--version")
    assert version.stdout == f"lynx-rt {lynx_rt.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["generate", "/no/such/model", "-p", "x"], "/no/such/model"),
        (["generate", "-p", "x", "--selection", "nonsense"], "nonsense"),
        (["generate", "-f", "/no/such/file"], "/no/such/file"),
        (["inspect", "/no/such/model"], "/no/such/model"),
        (["eval", "--tasks", "/no/such/folder"], "/no/such/folder"),
        (["bench", "decode", "/no/such/model"], "/no/such/model"),
    ],
)
def test_run_errors_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], text: str) -> None:
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lynx-rt: error: ") and text in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["generate", "-p", "x", "--temperature", "-1"],
        ["generate", "-p", "x", "--max-tokens", "0"],
        ["generate", "-p", "x", "-f", "y"],
        ["bench"],
        ["bench", "decode", "--batch", "0"],
        ["bench", "decode", "--selection", "k0=2"],
        ["eval"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and capsys.readouterr().out == ""


def test_ctrl_c() -> None:
    argv = [sys.executable, "-m", "lynx_rt", "eval", "--tasks", "-", "--limit", "1"]
    code = (
        "import sys, time; from lynx_rt.cli import eval, main; "
        "eval.run = lambda args: (print('go', flush=True), time.sleep(30)); sys.exit(main.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv[3:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == ""


def test_inspect_and_env(capsys: pytest.CaptureFixture[str], nano_path: str) -> None:
    assert main(["inspect", nano_path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_experts"] == 32 and facts["weight_bytes"] > 40e6 and facts["fits"] is True
    assert main(["inspect"]) == 0  # the shipped model
    assert f"({format_bytes(facts['weight_bytes'])})" in capsys.readouterr().out
    assert facts["tokenizer"] == "tokenizer.json"
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["isa"] in facts["supported_isas"] and facts["packages"]["tokenizers"]
    assert main(["env"]) == 0
    assert "usable_cores" in capsys.readouterr().out


def test_env_says_why_there_are_so_many_threads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    threads = found["threads"]
    assert found["cpu_model"] and 1 <= threads["num_threads"] <= found["usable_cores"] and threads["reason"]
    assert sum(kind["cpus"] for kind in threads["kinds"]) >= found["usable_cores"]
    made_up = {
        "num_threads": 16,
        "reason": "one per core",
        "kinds": [{"name": "cpu_core", "cores": 8, "cpus": 16}, {"name": "cpu_atom", "cores": 8, "cpus": 8}],
        "nodes": [0, 1],
        "cpu_quota": 7.65,
        "bound_to": [[0, 1, 2, 8], [4]],
        "bind_error": "",
        "interleaved_nodes": [0, 1],
        "interleave_error": "Operation not permitted",
    }
    monkeypatch.setattr("lynx_rt.cli.env.cpu_threads", lambda: made_up)
    assert main(["env"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    expected = {
        "cores": "8 (cpu_core) with 16 CPUs + 8 (cpu_atom)",
        "memory_nodes": "0-1",
        "cpu_quota": "7.65 CPUs",
        "threads": "16: one per core",
        "threads_run": "bound to CPUs 0-2,8 and 4",
        "pages_lie": "where touched: Operation not permitted",
    }
    assert {name: lines[name].strip() for name in expected} == expected


def test_inspect_reports_a_folder_without_a_tokenizer(
    capsys: pytest.CaptureFixture[str], nano_path: str, tmp_path: Path
) -> None:
    for file in Path(nano_path).iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tokenizer"] is None and "has no tokenizer file" in err
    (tmp_path / "tokenizer.json").write_text("{}")
    assert main(["inspect", str(tmp_path)]) == 0
    assert "is not a tokenizer" in capsys.readouterr().err


def test_bench_decode(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lynx_rt.cli import bench

    monkeypatch.setattr(bench, "_BANDWIDTH_BYTES", 1 << 24)
    argv = ["bench", "decode", "--batch", "1,4", "--selection", "topk,oea:k0=1", "--steps", "10", "--context", "16"]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["batch"], row["selection"]) for row in report["rows"]] == [
        (1, "topk"),
        (1, "oea:k0=1"),
        (4, "topk"),
        (4, "oea:k0=1"),
    ]
    machine = f"{report['build']['cpu_model']}; cpu {report['build']['isa']}, {report['threads']} threads, bfloat16"
    assert report["measured_on"] == machine
    for row in report["rows"]:
        assert row["steps"] == 10 and 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["bytes_per_step"] > 0 and row["read_gb_per_s"] > 0 and row["percent_of_read"] > 0
        assert 1 <= row["active"] <= row["union_before"] <= 4 * row["batch"]
    assert main([*argv, "--ops"]) == 0
    out = capsys.readouterr().out
    assert f"\n{machine}; ready in " in out
    assert "plain reading" in out and "expert_ffn" in out and " mlp " not in out
    _, *tables = out.split("% of step")
    for table in tables:
        rows = [line.split("  ") for line in table.split("\n\n")[0].splitlines()[2:]]
        shares = {row[0]: float([cell for cell in row[1:] if cell][1]) for row in rows}
        assert shares["outside the ops"] >= 0 and sum(shares.values()) == pytest.approx(100, abs=0.1 * len(shares))
    assert out.splitlines()[-1] == "command: lynx-rt " + " ".join([*argv, "--ops"])


def test_bench_decode_ends_where_a_request_fails() -> None:
    """It had waited for ever for the tokens of a request that had ended with an error."""
    from lynx_rt.cli import bench

    class Failing:
        add_request = staticmethod(lambda ids, params: 7)
        step = staticmethod(lambda: [argparse.Namespace(request_id=7, token_ids=[], error="router scores: row 68")])

    with pytest.raises(lynx_rt.LynxError, match="router scores: row 68"):
        bench.start_sequences(Failing(), [[1, 2, 3, 4]], 8)


def write_tasks(folder: Path) -> None:
    for task, op in (("add", "+"), ("sub", "-")):
        with (folder / f"{task}.jsonl").open("w") as file:
            for n in range(20, 26):
                answer = n + 11 if op == "+" else n - 11
                prompt = f"Q: What is {n} {op} 11?\nA:"
                print(
                    json.dumps({"task": task, "prompt": prompt, "answer": str(answer), "final": str(answer)}), file=file
                )


def test_eval(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_tasks(tmp_path)
    report_file = tmp_path / "report.json"
    argv = ["eval", "--tasks", str(tmp_path), "--batch", "4", "--selection", "topk,oea:k0=2", "--limit", "5"]
    assert main([*argv, "--json", str(report_file)]) == 0
    out = capsys.readouterr().out
    assert "10 items of 2 tasks, batch 4" in out and "oea:k0=2" in out
    topk, oea = json.loads(report_file.read_text())["results"]
    assert topk["selection"] == "topk" and topk["items"] == 10 and topk["accuracy"] >= 0.5
    assert topk["experts"]["active"] == pytest.approx(topk["experts"]["union_before"])
    assert oea["experts"]["active"] <= oea["experts"]["union_before"] and 0 <= oea["decode_only_share"] <= 1
    assert 1 < topk["perplexity"] < 2 and topk["perplexity"] == oea["perplexity"]


def test_an_error_of_one_item_is_unknown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_tasks(tmp_path)
    report_file = tmp_path / "report.json"
    assert main(["eval", "--tasks", str(tmp_path), "--limit", "1", "--json", str(report_file)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("topk ", "lynx "))]
    assert [row[2] for row in rows] == ["?", "?"] and rows[1][4] == "?" and "+-0.00" not in rows
    results = json.loads(report_file.read_text(), parse_constant=pytest.fail)["results"]
    assert [result["standard_error"] for result in results] == [None, None]


def test_eval_of_quantized_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_tasks(tmp_path)
    argv = [
        "eval",
        "--tasks",
        str(tmp_path),
        "--limit",
        "3",
        "--selection",
        "topk,lynx",
        "--quantization",
        "none,int8,int4",
    ]
    assert main([*argv, "--json", str(tmp_path / "report.json")]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in ("topk", "lynx", "int8", "int8 lynx", "int4", "int4 lynx"))
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [r["quantization"] for r in results] == ["none", "none", "int8", "int8", "int4", "int4"]
    assert len({r["perplexity"] for r in results}) == 3 and all(r["accuracy"] >= 0.5 for r in results)
    with pytest.raises(SystemExit):
        main([*argv[:-1], "int8,int3"])
    assert "must be one of none, dequantize, int8, int4, got 'int3'" in capsys.readouterr().err


def test_eval_items(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    items = load_items(tmp_path, limit=3, seed=1)
    assert len(items) == 6 and items == load_items(tmp_path, limit=3, seed=1)
    assert [item.task for item in items] != sorted(item.task for item in items)
    assert len(load_items(tmp_path)) == 12
    (tmp_path / "bad.jsonl").write_text('{"task": "x"}\n')
    with pytest.raises(ValidationError, match=r"bad\.jsonl:1"):
        load_items(tmp_path)


@pytest.mark.parametrize(
    ("completion", "good"),
    [(" 5 + 4 = 9. #### 9", True), ("x #### 9 ", True), ("9", False), ("#### 9 #### 8", False), ("", False)],
)
def test_scoring(completion: str, good: bool) -> None:
    assert is_correct(Item("gsm", "", "5 + 4 = 9. #### 9", "9"), completion) is good


def test_selections() -> None:
    assert selections("topk,lynx,oea:k0=2,foo=1,lynx:alpha=8,beta=4") == [
        "topk",
        "lynx",
        "oea:k0=2,foo=1",
        "lynx:alpha=8,beta=4",
    ]
    for bad in ("k0=2", "topk,,lynx", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            selections(bad)


def test_formats() -> None:
    assert format_bytes(999) == "999 B" and format_bytes(43_231_040) == "43.2 MB" and format_bytes(5e15) == "5e+03 TB"
    assert format_table(["a", "b"], [["x", 10]]) == "a   b\n-  --\nx  10"
