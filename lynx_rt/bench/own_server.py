"""A `lynx-rt serve` process for a load test."""

from __future__ import annotations

import contextlib
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lynx_rt.bench.client import Target
from lynx_rt.errors import LynxError


@contextlib.contextmanager
def own_server(model: str, options: Sequence[str]) -> Iterator[Target]:
    """Starts a server on a free port, with a key that lets its policy be changed, and ends it. Raises LynxError.

    options: of `lynx-rt serve`.
    """
    key = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        keys, log = Path(folder) / "key", Path(folder) / "log"
        keys.touch(mode=0o600)
        keys.write_text(key)
        command = [
            sys.executable,
            "-m",
            "lynx_rt",
            "serve",
            model,
            "--port",
            "0",
            "--api-key-file",
            str(keys),
            *options,
        ]
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
        try:
            yield Target.parse(_address(process, log), key)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Returns the URL of the server's first line."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
        text = log.read_text(encoding="utf-8")
        if found := re.search(r"listening on (\S+?),", text):
            return found[1]
        if process.returncode is not None:
            raise LynxError(f"the server ended: {text.strip() or f'exit code {process.returncode}'}")
