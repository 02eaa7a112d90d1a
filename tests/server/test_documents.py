"""What README.md and docs/serving.md say of the server is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import LiveServer

from lynx_rt.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SERVING = (ROOT / "docs/serving.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


@pytest.mark.parametrize("document", [README, SERVING], ids=["README.md", "serving.md"])
def test_curl(server: LiveServer, document: str) -> None:
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", document, re.DOTALL)).replace("\\\n", "")
    [line] = [line for line in blocks.splitlines() if line.startswith("curl")]
    command = shlex.split(line.replace(ADDRESS, server.url))
    done = subprocess.run([*command, "-sS"], capture_output=True, text=True, timeout=60, check=True)
    text = "".join(re.findall(r'"(?:text|content)":"([^"]*)"', done.stdout))
    assert text.strip() == "264", done.stdout


def test_openai_client(server: LiveServer) -> None:
    [block] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import openai" in block]
    code = block.replace(ADDRESS, server.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "264"


def test_every_option_is_explained() -> None:
    options = {name for action in build_parser().commands["serve"]._actions for name in action.option_strings}
    named = set(re.findall(r"`(--[a-z-]+)", SERVING))
    assert {name for name in options if name.startswith("--")} - {"--help", "--verbose"} <= named
    assert named <= options


def test_every_route_is_explained(server: LiveServer) -> None:
    for path in server.client.get("/openapi.json").json()["paths"]:
        plain = path.replace("{name}", "NAME")
        assert re.search(rf"[`/ ]{re.escape(plain)}`", SERVING), path
