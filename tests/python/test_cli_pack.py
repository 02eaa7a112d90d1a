"""`lynx-rt pack`: what it prints and writes, and how it fails. tests/cpp/test_pack_experts.cc reads the records back."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lynx_rt
from lynx_rt import _C
from lynx_rt.cli.main import main

EXPERTS = 8 * 32  # of lynx-nano


def pack(output: Path, *options: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "lynx_rt", "pack", "--output", str(output), "--json", *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_pack(quantization: str, tmp_path: Path) -> None:
    output = tmp_path / "experts.bin"
    packed = pack(output, "--quantization", quantization)
    assert packed["num_layers"] == 8 and packed["num_records"] == EXPERTS
    assert packed["file_bytes"] == output.stat().st_size
    assert packed["record_bytes"] % 4096 == 0
    assert 0 < packed["file_bytes"] - EXPERTS * packed["record_bytes"] < 1 << 20
    assert [file.name for file in tmp_path.iterdir()] == ["experts.bin"]
    first = output.read_bytes()
    pack(output, "--quantization", quantization, "--num-threads", "1")  # replaces the file
    assert output.read_bytes() == first


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "experts.bin"
    assert main(["pack", "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: {EXPERTS} experts of 8 layers, ")


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output, text in ((tmp_path / "no" / "file", "does not exist"), (tmp_path, "is a folder")):
        assert main(["pack", "--output", str(output)]) == 1
        assert text in capsys.readouterr().err
    with pytest.raises(lynx_rt.ModelNotFoundError):
        _C.pack_experts(str(tmp_path / "gone"), str(tmp_path / "e.bin"))
    with pytest.raises(lynx_rt.ValidationError, match="quantization"):
        _C.pack_experts(lynx_rt.shipped_model(), str(tmp_path / "e.bin"), "int3")
    assert not list(tmp_path.iterdir())


def test_exception_of_the_callback_leaves_no_file(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done * 2 > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _C.pack_experts(lynx_rt.shipped_model(), str(tmp_path / "e.bin"), on_progress=stop)
    assert not list(tmp_path.iterdir())


def test_interrupt_leaves_no_file(tmp_path: Path) -> None:
    """Ctrl-C while records are written; the callback waits, so that the signal comes then."""
    code = f"""
import sys, time
from lynx_rt import _C, shipped_model
def show(done, total):
    print(done, flush=True)
    time.sleep(0.05)
_C.pack_experts(shipped_model(), {str(tmp_path / "e.bin")!r}, on_progress=show)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline()
    assert [file.name for file in tmp_path.iterdir()] == ["e.bin.partial"]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert not list(tmp_path.iterdir())


def test_killed_process_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    output = tmp_path / "e.bin"
    (tmp_path / "e.bin.partial").write_bytes(b"x" * 10_000_000)
    packed = pack(output)
    assert [file.name for file in tmp_path.iterdir()] == ["e.bin"] and output.stat().st_size == packed["file_bytes"]


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    """A limit of the file's size stands for a disk that fills up."""
    done = subprocess.run(
        [sys.executable, "-m", "lynx_rt", "pack", "--output", str(tmp_path / "e.bin")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20)),
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "output: cannot write" in done.stderr and "e.bin.partial: File too large" in done.stderr
    assert not list(tmp_path.iterdir())
