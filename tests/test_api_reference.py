"""tools/api_reference.py: every public name and header has its place in the reference."""

import subprocess
import sys
from pathlib import Path

import lynx_rt

ROOT = Path(__file__).resolve().parents[1]


def test_reference(tmp_path: Path) -> None:
    script = ROOT / "tools" / "api_reference.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=120, capture_output=True)
    page = (tmp_path / "lynx_rt.html").read_text()
    assert [name for name in lynx_rt.__all__ if f'id="{name}"' not in page] == []
    index = (tmp_path / "index.html").read_text()
    for header in (ROOT / "csrc" / "include" / "lynx_rt").glob("*.h"):
        assert f'href="include/{header.name}.html"' in index
        assert (tmp_path / "include" / f"{header.name}.html").stat().st_size > header.stat().st_size
