"""Reads the object files of the kernels, which are compiled for instruction sets that a CPU may lack."""

import subprocess
from pathlib import Path


def kernel_objects(tree: Path) -> list[Path]:
    return sorted(file for kind in ("kernels", "quant") for file in tree.rglob(f"{kind}_*.o"))


def check_symbols(file: Path, nm: str) -> None:
    """The linker might keep a weak (COMDAT) symbol of a file compiled for AVX for all files, which would end a process on a CPU
    without AVX. So these files may define nothing that another file could define as well."""
    lines = subprocess.run([nm, "-C", "--defined-only", file], capture_output=True, text=True, check=True).stdout
    symbols = [line.split(maxsplit=2)[1:] for line in lines.splitlines()]
    weak = [name for kind, name in symbols if kind in "WwVvu"]
    assert not weak, f"{file.name} defines {weak[:5]}"
    exported = [name for kind, name in symbols if kind in "TDBRG"]
    # Each file defines a table; kernels_amxbf16.cc has functions instead, which kernels.cc puts into a copy of another table.
    own = ("lynx_rt::cpu::k", "lynx_rt::cpu::amx_") if "amx" in file.name else "lynx_rt::cpu::k"
    assert exported and all(name.startswith(own) for name in exported), f"{file.name} defines {exported}"
