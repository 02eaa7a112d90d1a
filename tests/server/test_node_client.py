"""OpenAI's JavaScript client on a live server. Needs npm, which downloads the client."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import LiveServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("npm") is None or shutil.which("node") is None, reason="npm and node are not there"
    ),
]
CLIENT = "openai@7.55.0"
SCRIPT = Path(__file__).with_name("node_client.mjs")


def _install(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs npm, and once more where it hangs, which it does now and then where the registry does not answer."""
    for seconds in (60, 120):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    return subprocess.CompletedProcess(command, 1, "", "the registry does not answer")


def test_node_client(tmp_path: Path, server: LiveServer) -> None:
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(tmp_path), CLIENT]
    # By itself, npm waits for minutes where the registry does not answer.
    command += ["--fetch-timeout=15000", "--fetch-retries=6", "--fetch-retry-mintimeout=500"]
    installed = _install(command)
    if installed.returncode != 0:
        pytest.skip(f"npm cannot download {CLIENT}: {installed.stderr.strip()[-200:]}")
    script = shutil.copy(SCRIPT, tmp_path)
    done = subprocess.run(["node", script, server.url], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    error = found.pop("error")
    assert (error["name"], error["status"], error["param"]) == ("BadRequestError", 400, "temperature")
    assert "temperature must be" in error["message"]
    assert found.pop("usage") > 0
    assert found == {
        **dict.fromkeys(("content", "streamed", "helper", "completion", "response"), " 264"),
        "extra": "topk",
        "formed": "number",
        "called": "add",
        "models": ["lynx-nano"],
        "retrieved": "lynx-nano",
    }
    server.wait_idle()
