"""Machine code of NVIDIA GPUs, as nvdisasm lists it: loops, what each pipe has to do, and how long one warp takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s*/\* 0x([0-9a-f]{16}) \*/")
_SECOND = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/\s*$")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_OPCODE = re.compile(r"^(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)")
_BRANCH = re.compile(r"\bBRA\b.*?`\((\.L_x_\d+)\)")

_FP32 = {"FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2"}
_ALU = {
    "IADD3",
    "LOP3",
    "SEL",
    "FSEL",
    "FMNMX",
    "ISETP",
    "FSETP",
    "PRMT",
    "SHF",
    "LEA",
    "I2FP",
    "F2FP",
    "IMNMX",
    "VIADD",
}
_LATENCY = {"MUFU": 22, "SHFL": 24, "LDS": 30, "LDSM": 33, "I2F": 20, "F2F": 20, "I2FP": 6}
"""Cycles until a result is there, of instructions that signal it by a barrier; others: 15."""
CAPABILITIES = {
    "sm_80": {"tensor": 8.0, "fp32": 2.0},
    "sm_86": {"tensor": 16.0, "fp32": 1.0},
    "sm_89": {"tensor": 16.0, "fp32": 1.0},
    "sm_90a": {"tensor": 8.0, "fp32": 1.0},
}
"""Cycles for which one instruction of a warp keeps a pipe of its quarter of a multiprocessor: products of 16 × 8 × 16 with sums
in fp32, and additions. The same for all: 8 of the special functions and conversions, 2 of integers, 1 of issuing. Sources: the
CUDA programming guide's table of arithmetic throughput, and the data sheets' rates of dense products."""


class Instruction(NamedTuple):
    """One instruction. `stall`: cycles until the next may be issued; `waits`: the barriers that it waits for; `sets`: those that
    it sets when its result is there, and when its operands are read; -1: none."""

    address: int
    opcode: str
    text: str
    stall: int
    waits: tuple[int, ...]
    sets: tuple[int, int]


class Loop(NamedTuple):
    """The instructions from `start` to `end`, which is a branch back."""

    start: int
    end: int


def parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of `nvdisasm -c -hex`, and the address of every label. Only of the longest function."""
    functions: list[tuple[list[Instruction], dict[str, int]]] = []
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    waiting: list[str] = []
    first: re.Match[str] | None = None
    for line in listing.splitlines():
        if ".section\t.text." in line or ".section .text." in line:
            found, labels = [], {}
            functions.append((found, labels))
        elif match := _LABEL.match(line):
            waiting.append(match[1])
        elif match := _LINE.match(line):
            first = match
        elif first and (match := _SECOND.match(line)):
            address = int(first[1], 16)
            labels.update(dict.fromkeys(waiting, address))
            waiting.clear()
            opcode = _OPCODE.match(first[2])
            control = int(match[1], 16) >> 41
            waits = tuple(number for number in range(6) if control >> 11 & 1 << number)
            sets = tuple(-1 if (number := control >> shift & 7) == 7 else number for shift in (5, 8))
            found.append(
                Instruction(address, opcode[1] if opcode else "?", first[2], control & 15, waits, (sets[0], sets[1]))
            )
            first = None
    return max(functions, key=lambda function: len(function[0]))


def loops(instructions: Sequence[Instruction], labels: dict[str, int]) -> list[Loop]:
    """The loops that contain no other, in the order of their addresses."""
    every = []
    for instruction in instructions:
        if (match := _BRANCH.search(instruction.text)) and labels[match[1]] < instruction.address:
            every.append(Loop(labels[match[1]], instruction.address))
    return sorted(a for a in every if not any(a != b and a.start <= b.start and b.end <= a.end for b in every))


def skipped(instructions: Iterable[Instruction], labels: dict[str, int]) -> list[Loop]:
    """The stretches that a forward branch may skip, longest first."""
    found = [
        Loop(instruction.address, labels[match[1]])
        for instruction in instructions
        if (match := _BRANCH.search(instruction.text)) and labels[match[1]] > instruction.address
    ]
    return sorted(found, key=lambda part: part.start - part.end)


def within(instructions: Iterable[Instruction], part: Loop) -> list[Instruction]:
    """The instructions of a loop, its branch included."""
    return [instruction for instruction in instructions if part.start <= instruction.address <= part.end]


def pipe(instruction: Instruction, capability: str) -> tuple[str, float]:
    """The pipe that an instruction uses, and for how many cycles of its quarter of a multiprocessor.

    The path to shared memory, 128 bytes a cycle, belongs to all four quarters, so a warp's 512 bytes take 4 cycles of it and
    count as 16.
    """
    name, _, rest = instruction.opcode.partition(".")
    rates = CAPABILITIES[capability]
    if name == "HMMA":
        return "tensor", rates["tensor"] * (0.5 if ".1688" in instruction.opcode else 1)
    if name == "HGMMA":  # 64 × N × 16 for the four quarters together
        rows, columns, depth = map(int, re.search(r"(\d+)x(\d+)x(\d+)", rest).groups())
        return "tensor", rows * columns * depth / 2048
    if name in ("MUFU", "I2F", "F2I", "F2F"):
        return "mufu", 8.0
    if name in _FP32:
        return "fp32", rates["fp32"]
    if name in _ALU:
        return "alu", 2.0
    if name in ("LDSM", "LDS", "STS", "LDGSTS", "STSM"):
        size = 16 * int(rest[-1]) if name in ("LDSM", "STSM") and rest[-1:].isdigit() else 0
        found = re.search(r"\.(64|128)\b", instruction.opcode)
        count = size // 4 if size else int(found[1]) // 8 if found else 4
        return "shared", float(count)
    return "other", 0.0


def work(instructions: Iterable[Instruction], capability: str) -> dict[str, float]:
    """Cycles of every pipe for one warp, and of issuing."""
    found: Counter[str] = Counter()
    for instruction in instructions:
        name, cycles = pipe(instruction, capability)
        found[name] += cycles
        found["issue"] += 1
    del found["other"]
    return dict(found)


def issued(instructions: Iterable[Instruction], capability: str) -> int:
    """Cycles in which one warp alone issues the instructions in order: stalls, barriers and busy pipes."""
    now, ready, free = 0.0, [0.0] * 6, Counter[str]()
    for instruction in instructions:
        name, cycles = pipe(instruction, capability)
        at = max(
            [now, free[name] if name in ("tensor", "mufu") else 0.0, *(ready[number] for number in instruction.waits)]
        )
        if name in ("tensor", "mufu") and not instruction.opcode.startswith("HGMMA"):
            free[name] = at + cycles
        result, read = instruction.sets
        if result >= 0:
            ready[result] = at + _LATENCY.get(instruction.opcode.partition(".")[0], 15)
        if read >= 0:
            ready[read] = max(ready[read], at + 10)
        now = at + max(instruction.stall, 1)
    return round(now)


def spills(instructions: Iterable[Instruction]) -> int:
    """Loads and stores of registers that did not suffice."""
    return sum(instruction.opcode.partition(".")[0] in ("LDL", "STL") for instruction in instructions)
