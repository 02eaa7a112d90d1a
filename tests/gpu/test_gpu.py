"""The kernels and the engine on this machine's GPU; skipped where there is none. `tests/gpu/run` is the same without pytest."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def why_not() -> str:
    """Returns what this machine lacks, or ""."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi: this machine has no GPU"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    if listed.returncode != 0 or "GPU 0" not in listed.stdout:
        return f"nvidia-smi lists no GPU: {listed.stdout.strip() or listed.stderr.strip()}"
    missing = [tool for tool in ("nvcc", "cmake", "bash") if shutil.which(tool) is None]
    return f"needs {' and '.join(missing)} on PATH" if missing else ""


@pytest.mark.gpu
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")
def test_on_the_gpu(tmp_path: Path) -> None:
    # A checkout that only reads: the build goes where the environment says, else beside the results.
    environment = {"LYNX_RT_GPU_BUILD_DIR": str(tmp_path / "build"), **os.environ}
    done = subprocess.run(
        [HERE / "run", tmp_path / "out", "--quick"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
    )
    print(done.stdout)
    results = [json.loads(line) for line in (tmp_path / "out" / "summary.jsonl").read_text().splitlines()]
    failed = [result["name"] for result in results if result["ok"] is False]
    assert done.returncode == 0 and not failed and len(results) > 8, done.stdout
