"""bench/peers: the command that runs the engines in turns, with fake workers, and the worker of lynx_rt."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PEERS = Path(__file__).resolve().parents[2] / "bench" / "peers"


@pytest.fixture(autouse=True)
def scripts_find_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """tools/test.sh sets what keeps Python from looking beside a script."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)


@pytest.fixture(scope="module")
def peers() -> Any:
    """Imports the modules of bench/peers, which are scripts and not a package."""
    names = ("processes", "report", "run", "workload")
    sys.path.insert(0, str(PEERS))
    try:
        modules = SimpleNamespace(**{name: __import__(name) for name in names})
    finally:
        sys.path.remove(str(PEERS))
    yield modules
    for name in names:
        del sys.modules[name]


def fake(tmp_path: Path, name: str, code: str) -> list[str]:
    """Returns the command of a worker that runs the code, in which say() prints a result."""
    path = tmp_path / f"{name}.py"
    path.write_text(f"import json, os, sys, time\ndef say(**r): print(json.dumps(r), flush=True)\n{code}\n")
    return [sys.executable, str(path)]


def arguments(peers: Any, model: str, *argv: str) -> argparse.Namespace:
    return peers.run.parse_arguments([model, *argv])


def engine(peers: Any, name: str, *rounds: list[dict[str, Any]], ready: float = 1.0) -> Any:
    return peers.report.Engine(name, [peers.processes.Round(records, ready, 3 * 10**9, 10**9) for records in rounds])


# The command line


def test_arguments(peers: Any, nano_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM", "LYNX_RT", "TRANSFORMERS", "LLAMA_CPP", "GGUF"):
        monkeypatch.delenv(f"LYNX_RT_PEER_{name}", raising=False)
    args = arguments(peers, nano_path)
    assert (args.batch, args.prefill, args.rounds) == ([1, 8, 32], 512, 3)
    assert args.engines[0] == "lynx_rt" and "llama.cpp:q4_0" in args.engines and len(args.engines) == 8
    assert args.vllm_python == sys.executable and args.llama_cpp == ""
    monkeypatch.setenv("LYNX_RT_PEER_VLLM", "/env/python")
    monkeypatch.setenv("LYNX_RT_PEER_LLAMA_CPP", "/env/build")
    args = arguments(
        peers, nano_path, "--batch", "1,3", "--engines", "vllm,lynx_rt,vllm", "--transformers-python", "/p"
    )
    assert (args.batch, args.engines) == ([1, 3], ["vllm", "lynx_rt"])
    assert (args.vllm_python, args.transformers_python, args.llama_cpp) == ("/env/python", "/p", "/env/build")


@pytest.mark.parametrize(
    "argv", [["--batch", "0"], ["--batch", "1,"], ["--rounds", "0"], ["--engines", "sglang"], ["--engines", ""]]
)
def test_wrong_arguments(peers: Any, nano_path: str, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments(peers, nano_path, *argv)
    assert caught.value.code == 2 and "usage" in capsys.readouterr().err


def test_no_model(peers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(peers, str(tmp_path))
    assert "no config.json" in capsys.readouterr().err


def test_worker_commands(peers: Any, nano_path: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-batched-bench").touch()
    (tmp_path / "q8_0.gguf").touch()
    args = arguments(
        peers, nano_path, "--batch", "2,5", "--threads", "1", "--llama-cpp", str(tmp_path), "--gguf", str(tmp_path)
    )
    command = peers.run.worker_command("lynx_rt:int8", args)
    assert command[:5] == [sys.executable, str(PEERS / "worker_lynx_rt.py"), nano_path, "--variant", "int8"]
    assert command[command.index("--batch") + 1] == "2,5" and command[command.index("--threads") + 1] == "1"
    command = peers.run.worker_command("llama.cpp:q8_0", args)
    assert command[command.index("--gguf") + 1] == str(tmp_path / "q8_0.gguf")
    with pytest.raises(peers.run.Unavailable, match=r"no .*bf16\.gguf.*to_gguf\.py"):
        peers.run.worker_command("llama.cpp", args)


def test_threads_are_those_that_lynx_rt_would_start(peers: Any, nano_path: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh\necho '{"threads": {"num_threads": 77}}'\n""")
    python.chmod(0o755)
    assert arguments(peers, nano_path, "--lynx-rt-python", str(python)).threads == 77
    assert arguments(peers, nano_path, "--lynx-rt-python", str(python), "--threads", "5").threads == 5
    assert arguments(peers, nano_path, "--lynx-rt-python", "/no/such").threads == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("name", ["vllm", "transformers", "lynx_rt", "llama.cpp:bf16"])
def test_a_missing_peer_says_how_to_get_it(peers: Any, nano_path: str, tmp_path: Path, name: str) -> None:
    bare = tmp_path / "python"  # an interpreter that has no packages
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    kind = name.partition(":")[0]
    for path in (str(bare), str(tmp_path / "no such file")):
        option = "--llama-cpp" if kind == "llama.cpp" else f"--{kind.replace('_', '-')}-python"
        args = arguments(peers, nano_path, option, path)
        with pytest.raises(peers.run.Unavailable) as caught:
            peers.run.worker_command(name, args)
        assert path in str(caught.value) and peers.run.GET[kind] in str(caught.value)


def test_every_engine_has_a_worker(peers: Any) -> None:
    assert all(path.is_file() for path in peers.run.WORKER.values())


# Processes

GOOD = (
    "say(version='1'); say(ready=True); say(batch=1, decode_ms=2.0); say(batch=1, decode_ms=4.0); say(prefill_ms=9.0)"
)


def test_a_worker(peers: Any, tmp_path: Path) -> None:
    code = f"time.sleep(0.3); memory = bytearray(b'x') * (64 << 20); {GOOD}; time.sleep(0.5)"
    result = peers.processes.run_worker(fake(tmp_path, "good", code), timeout=30)
    assert result.failure == "" and result.values("decode_ms", 1) == [2.0, 4.0] and result.values("decode_ms", 8) == []
    assert result.values("version") == ["1"] and 0.3 <= result.ready_s < 30
    assert 64 << 20 <= result.peak_anonymous_bytes <= result.peak_resident_bytes < 1 << 30


def test_memory_of_children_counts(peers: Any, tmp_path: Path) -> None:
    child = "memory = bytearray(b'x') * (96 << 20); import time; time.sleep(0.6)"
    code = f"import subprocess\nsubprocess.run([sys.executable, '-c', {child!r}])\nsay(batch=1, decode_ms=1)"
    result = peers.processes.run_worker(fake(tmp_path, "parent", code), timeout=30)
    assert result.failure == "" and result.peak_anonymous_bytes >= 96 << 20


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (f"{GOOD}; sys.exit('no memory left')", "exit status 1: no memory left"),
        ("raise ValueError('bad shape')", "exit status 1: ValueError: bad shape"),
        ("os.abort()", "ended by SIGABRT: no message"),
        ("pass", "printed no results"),
        ("print('hello')", "printed 'hello'"),
    ],
)
def test_a_worker_that_fails(peers: Any, tmp_path: Path, code: str, reason: str) -> None:
    assert peers.processes.run_worker(fake(tmp_path, "bad", code), timeout=30).failure == reason


def test_a_worker_that_hangs_is_ended_with_its_children(peers: Any, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        f"import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid)); say(batch=1, decode_ms=5.0); time.sleep(60)"
    )
    start = time.monotonic()
    result = peers.processes.run_worker(fake(tmp_path, "hangs", code), timeout=2)
    assert time.monotonic() - start < 20 and result.failure == "did not end in 2 s"
    assert result.values("decode_ms", 1) == [5.0]  # results printed before are kept
    deadline = time.monotonic() + 10
    while alive(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_that_is_ended_ends_its_worker(peers: Any, tmp_path: Path) -> None:
    worker = fake(tmp_path, "worker", f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); import processes; "
        f"processes.run_worker({worker!r}, 60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PEERS)
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=20) == 143
    assert not alive(int((tmp_path / "pid").read_text()))


def test_the_worker_of_llama_cpp(nano_path: str, tmp_path: Path) -> None:
    """With a program in the place of llama-batched-bench that prints a table as it does."""
    bench = tmp_path / "bin" / "llama-batched-bench"
    bench.parent.mkdir()
    bench.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "version: 7 (abc)" >&2; exit; fi\n'
        "echo '|    PP |   B | S_PP t/s | S_TG t/s |'; echo '|-------|-----|----------|----------|'\n"
        "echo '|    32 |   2 |   1024.0 |     50.0 |'\n"
        'case "$*" in *"-npl 2,2"*) echo "|    32 |   2 |   1024.0 |    100.0 |";; esac\n'
        'case "$*" in *"-npp 64"*) exit 3;; esac\n'
    )
    bench.chmod(0o755)
    (tmp_path / "bf16.gguf").write_bytes(b"x" * 10_000_000)
    command = [sys.executable, str(PEERS / "worker_llama_cpp.py"), nano_path, "--build", str(tmp_path), "--gguf"]
    command += [str(tmp_path / "bf16.gguf"), "--batch", "2"]
    done = subprocess.run([*command, "--repeats", "2"], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"version": "7 (abc)"},
        {"note": "0.01 GB file"},
        {"ready": True},
        {"batch": 2, "decode_ms": 40.0},
        {"batch": 2, "decode_ms": 20.0},
    ]
    done = subprocess.run([*command, "--prefill", "64"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ended with 3 after 1 of 1 rows" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"prefill_ms": 62.5}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_others_go_on_in_rotating_order(peers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    codes = {
        "lynx_rt": GOOD,
        "vllm": "say(ready=True); say(batch=1, decode_ms=7.0); os.abort()",
        "lynx_rt:int8": "say(unavailable='not in this build')",
        "transformers": "time.sleep(60)",
        "llama.cpp": GOOD,
    }
    commands = {
        name: fake(tmp_path, f"w{i}", f"open({str(log)!r}, 'a').write({name!r} + '\\n'); {code}")
        for i, (name, code) in enumerate(codes.items())
    }
    engines = [peers.report.Engine(name) for name in codes]
    reads: list[int] = []
    peers.run.measure(engines, commands, rounds=3, timeout=5, read_bandwidth=lambda: reads.append(1))
    by_name = {item.name: item for item in engines}
    assert [len(by_name[name].rounds) for name in codes] == [3, 1, 0, 1, 3] and len(reads) == 4
    assert by_name["lynx_rt"].failure == by_name["llama.cpp"].failure == ""
    assert by_name["vllm"].failure == "round 1: ended by SIGABRT: no message"
    assert by_name["lynx_rt:int8"].failure == "not available: not in this build"
    assert by_name["transformers"].failure == "round 1: did not end in 5 s"
    assert by_name["vllm"].median("decode_ms", 1) == 7.0
    assert log.read_text().split() == [*codes, "llama.cpp", "lynx_rt", "llama.cpp", "lynx_rt"]
    assert "round 3, lynx_rt: B=1 3.0 ms" in capsys.readouterr().err


# Tables


def step(batch: int, *times: float) -> list[dict[str, Any]]:
    return [{"batch": batch, "decode_ms": time} for time in times]


def test_medians_and_ratios(peers: Any) -> None:
    ours = engine(
        peers,
        "lynx_rt",
        [*step(1, 9, 10, 90), *step(8, 40), {"prefill_ms": 100.0}, {"batch": 1, "bytes": 50e6}],
        [*step(1, 12), *step(8, 44), {"prefill_ms": 110.0}, {"batch": 1, "bytes": 50e6}],
        [*step(1, 11), *step(8, 36), {"prefill_ms": 120.0}, {"batch": 1, "bytes": 50e6}],
        ready=0.5,
    )
    theirs = engine(peers, "vllm", [*step(1, 22), {"version": "0.32"}, {"note": "fast"}, {"note": "fast"}], ready=30.0)
    broken = peers.report.Engine("transformers", failure="not available: no torch")
    table = peers.report.speed_table([theirs, ours, broken], [1, 8], 512, gb_per_s=10.0)
    assert table == [
        ["engine", "B=1 ms", "x", "B=8 ms", "x", "prefill 512 ms", "tok/s", "x", "spread %"],
        ["vllm", "22", "2.00", "-", "-", "-", "-", "-", "0"],
        ["lynx_rt", "11", "1.00", "40", "1.00", "110.0", "4655", "1.00", "20"],
        ["(reading alone)", "5", "0.45", "-", "-", "-", "-", "-", "-"],
    ]
    costs = peers.report.cost_table([theirs, ours, broken])
    assert costs[1] == ["vllm", "30", "60.00", "30", "3", "1", "0.32; fast"]
    assert costs[2][:4] == ["lynx_rt", "0.5", "1.00", "0.5"] and len(costs) == 3
    assert peers.report.not_measured([theirs, ours, broken]) == ["transformers: not available: no torch"]


def test_without_lynx_rt_there_are_no_ratios(peers: Any) -> None:
    table = peers.report.speed_table([engine(peers, "vllm", step(1, 22))], [1], 0, gb_per_s=None)
    assert table == [["engine", "B=1 ms", "x", "spread %"], ["vllm", "22", "-", "0"]]


def test_markdown(peers: Any) -> None:
    assert peers.report.markdown([["a", "bb"], ["ccc", "1"]]) == "| a   | bb |\n|-----|----|\n| ccc |  1 |"


# The whole command, and lynx_rt's worker


def test_prompts_are_the_same_for_all(peers: Any, nano_path: str) -> None:
    workload, _ = peers.workload.Workload(nano_path, "", [1, 3], 7, 5, 2, 1, 1, "", ""), None
    prompts = workload.prompts(3, 5)
    assert prompts == workload.prompts(3, 5) and [len(ids) for ids in prompts] == [5, 5, 5]
    assert len({tuple(ids) for ids in prompts}) == 3 and all(3 <= token < 4096 for ids in prompts for token in ids)
    assert workload.max_model_len == 5 + peers.workload.FIRST + 2


def test_a_step_is_a_difference(peers: Any, nano_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = peers.workload.Workload(nano_path, "", [1, 4], 20, 6, 10, 3, 1, "", "")
    clock = 0.0
    calls: list[tuple[int, int, int]] = []

    def generate(prompts: list[list[int]], count: int) -> None:
        nonlocal clock
        noise = 50.0 if len(calls) % 6 == 4 and len(prompts[0]) == 6 else 0.0  # in one of three calls
        clock += sum(map(len, prompts)) + count * 2.0 * len(prompts) + noise
        calls.append((len(prompts), len(prompts[0]), count))

    monkeypatch.setattr(peers.workload.time, "perf_counter", lambda: clock)
    records: list[dict[str, Any]] = []
    peers.workload.measure(workload, lambda **record: records.append(record), generate)
    steps = [(r["batch"], r["decode_ms"]) for r in records if "decode_ms" in r]
    assert steps == [(1, pytest.approx(2e3)), (4, pytest.approx(8e3))]  # neither the prefill nor one slow call
    assert records[0] == {"ready": True} and calls[0] == (1, 2, 1)
    assert [r["prefill_ms"] for r in records if "prefill_ms" in r] == [22e3] * 3
    first = peers.workload.FIRST
    assert calls[1:8] == [(1, 6, 2), *[(1, 6, first), (1, 6, first + 10)] * 3] and calls[-1] == (1, 20, 1)


def test_run(peers: Any, nano_path: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    argv = ["--batch", "1,3", "--prefill", "17", "--rounds", "2", "--repeats", "1", "--context", "5", "--steps", "3"]
    argv += ["--threads", "1", "--engines", "llama.cpp,lynx_rt,lynx_rt:nonsense", "--json", str(out)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LYNX_RT_PEER")}
    command = [sys.executable, str(PEERS / "run.py"), nano_path, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "- llama.cpp: not available: no build" in done.stdout
    assert "- lynx_rt:nonsense: " in done.stdout and "TypeError" not in done.stdout
    assert (
        ", 1 threads\nplain reading: " in done.stdout
        and f"command: python bench/peers/run.py {nano_path}" in done.stdout
    )
    result = json.loads(out.read_text())
    assert [item["name"] for item in result["engines"]] == ["llama.cpp", "lynx_rt", "lynx_rt:nonsense"]
    assert min(result["read_gb_per_s"]) > 0 and len(result["load_average"]) == 3
    rounds = result["engines"][1]["rounds"]
    assert len(rounds) == 2
    for item in rounds:
        assert item["failure"] == "" and item["ready_s"] > 0 and item["peak_resident_bytes"] > 1 << 20
        records = item["records"]
        assert [r["batch"] for r in records if "decode_ms" in r] == [1, 3]
        assert sum("prefill_ms" in r for r in records) == 1
        one, three = (r["bytes"] for r in records if "bytes" in r)
        # One row reads 4 of 32 experts; three rows share some of theirs, and what every step reads.
        assert 0 < one < three < 3 * one and one < (Path(nano_path) / "model.safetensors").stat().st_size / 2


def test_no_engine_at_all(peers: Any, nano_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [nano_path, "--engines", "llama.cpp", "--rounds", "1", "--threads", "1", "--llama-cpp", "/no/such/build"]
    assert peers.run.main(argv) == 1
    assert "- llama.cpp: not available: no /no/such/build/bin" in capsys.readouterr().out
