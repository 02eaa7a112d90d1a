"""The instruction sets that the kernels are compiled for and this machine has, as test parameters.

test_instruction_sets.py skips once for each that is absent.
"""

from __future__ import annotations

from lynx_rt import _C

NAMES = ["scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amxbf16"]
SUPPORTED: list[str] = _C.build_info()["supported_isas"]
ISAS = [name for name in NAMES if name in SUPPORTED]
