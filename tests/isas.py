"""The instruction sets that the kernels are compiled for and this machine has, as test parameters.

test_instruction_sets.py skips once for each that is absent.
"""

from __future__ import annotations

import platform

from lynx_rt import _C

X86 = ["avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amxbf16"]
ARM = ["neon", "neon_dotprod", "neon_i8mm", "neon_bf16"]
NAMES = ["scalar", *X86, *ARM]
# The others cannot be here: test_arm.py runs those of ARM in an emulator.
OF_ARCHITECTURE = ["scalar", *(ARM if platform.machine() in ("aarch64", "arm64") else X86)]
SUPPORTED: list[str] = _C.build_info()["supported_isas"]
ISAS = [name for name in NAMES if name in SUPPORTED]
