"""Runs one worker in a process of its own, and reports its output with times, its memory, and why it ended early."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_POLL_S = 0.1  # between two samples of the memory
_REASON_CHARACTERS = 160


@dataclass
class Round:
    """A worker's output, and what was measured from outside."""

    records: list[dict[str, Any]] = field(default_factory=list)
    ready_s: float | None = None  # from the start of the process to its first token
    peak_resident_bytes: int = 0  # with mapped pages of files
    peak_anonymous_bytes: int = 0  # without mapped pages of files
    failure: str = ""

    def values(self, key: str, batch: int | None = None) -> list[Any]:
        return [r[key] for r in self.records if key in r and (batch is None or r.get("batch") == batch)]


def run_worker(command: Sequence[str], timeout: float, env: dict[str, str] | None = None) -> Round:
    """Runs a worker until it ends, or for `timeout` seconds. Leaves none of its processes behind."""
    result = Round()
    with tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
            start_new_session=True,
        )
        reader = threading.Thread(target=_read, args=(process, result, start))
        reader.start()
        timed_out = False
        try:
            while process.poll() is None and not timed_out:
                _look_at_memory(process.pid, result)
                time.sleep(_POLL_S)
                timed_out = time.monotonic() - start > timeout
        finally:  # also if a signal ends this process
            _end_group(process)
            reader.join()
        if timed_out:
            result.failure = f"did not end in {timeout:g} s"
        elif process.returncode:
            result.failure = f"{_status(process.returncode)}: {_last_line(errors)}"
        elif not result.failure and not result.records:
            result.failure = "printed no results"
    return result


def _read(process: subprocess.Popen[str], result: Round, start: float) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            try:
                record = json.loads(line)
            except ValueError:
                result.failure = f"printed {line.strip()[:_REASON_CHARACTERS]!r}"
                continue
            if record.pop("ready", False):
                result.ready_s = time.monotonic() - start
            if record:
                result.records.append(record)


def _end_group(process: subprocess.Popen[str]) -> None:
    """Ends the worker and the processes that it started, which form a session of their own."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _look_at_memory(pid: int, result: Round) -> None:
    resident = anonymous = 0
    for member in _tree(pid):
        fields = _status_fields(member)
        resident += fields.get("VmHWM", 0)  # the kernel's own peak, which no sampling can miss
        anonymous += fields.get("RssAnon", 0)
    result.peak_resident_bytes = max(result.peak_resident_bytes, resident)
    result.peak_anonymous_bytes = max(result.peak_anonymous_bytes, anonymous)


def _tree(pid: int) -> list[int]:
    """Returns the process and its descendants."""
    members = [pid]
    for member in members:
        for path in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += map(int, path.read_text(encoding="ascii").split())
            except OSError:
                continue  # it has ended
    return members


def _status_fields(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    parts = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in parts}


def _status(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _last_line(errors: Any) -> str:
    errors.seek(0)
    text = errors.read().decode("utf-8", "replace")
    sys.stderr.write(text[-4000:])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][-_REASON_CHARACTERS:] if lines else "no message"
