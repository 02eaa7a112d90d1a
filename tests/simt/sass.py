"""Reads what cuobjdump -sass prints: the instructions of a kernel with the scoreboards that they set and wait for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nvcc_build import demangle

# Reads and writes of device memory, plain, atomic and asynchronous.
MEMORY = {"LD", "LDG", "LDGSTS", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "UBLKCP", "UBLKRED"}


class Instruction(NamedTuple):
    opcode: str  # with its modifiers: LDG.E.128
    sets: int | None  # the scoreboard that is set until the result is there
    waits: frozenset[int]  # scoreboards that must be clear

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]


def control(word: int) -> tuple[int | None, frozenset[int]]:
    """Returns the scoreboard that an instruction sets and those that it waits for, from the upper half of its encoding, which NVIDIA
    has not published: bits 41.. are stall cycles (4), yield (1), scoreboard of the result (3), of the operands (3), mask (6)."""
    sets = word >> 46 & 7
    return sets if sets != 7 else None, frozenset(bit for bit in range(6) if word >> 52 >> bit & 1)


def parse(text: str) -> dict[str, list[Instruction]]:
    """Returns kernel -> its instructions."""
    kernels: dict[str, list[Instruction]] = {}
    instructions: list[Instruction] = []
    opcode = ""
    for line in text.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            instructions = kernels.setdefault(demangle(match[1]), [])
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line):
            opcode = match[1]
        elif opcode and (match := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line)):
            instructions.append(Instruction(opcode, *control(int(match[1], 16))))
            opcode = ""
    return kernels


def disassemble(cuobjdump: tuple[str, dict[str, str]], file: Path, architecture: str) -> dict[str, list[Instruction]]:
    program, environment = cuobjdump
    command = [program, "-sass", "-arch", f"sm_{architecture}", str(file)]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def most_in_flight(instructions: Sequence[Instruction]) -> int:
    """Returns the most loads from device memory that are issued before an instruction waits for one of them."""
    most = under_way = 0
    waited_for: set[int] = set()
    for instruction in instructions:
        if instruction.waits & waited_for:
            under_way, waited_for = 0, set()
        if instruction.name == "LDG" and instruction.sets is not None:
            under_way += 1
            waited_for.add(instruction.sets)
            most = max(most, under_way)
    return most
