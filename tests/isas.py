"""Every instruction set that the kernels are compiled for, as test parameters; those that this machine lacks are skipped."""

from __future__ import annotations

import pytest

from lynx_rt import _C

NAMES = ["scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amxbf16"]
SUPPORTED = _C.build_info()["supported_isas"]
ISAS = [
    pytest.param(name, marks=pytest.mark.skipif(name not in SUPPORTED, reason=f"{name}: not on this machine")) for name in NAMES
]
