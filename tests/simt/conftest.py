"""Makes the build of the C++ tests importable, and gives all tests the same run of nvcc."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cpp"))
sys.path.insert(0, str(Path(__file__).parent))

from nvcc_build import compiled

__all__ = ["compiled"]
