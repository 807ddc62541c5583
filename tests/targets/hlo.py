"""What a compiled program copies, read from its optimised HLO text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\](\S*) ([\w\-]+)\((.*)")
_COPIES = {"copy", "copy-start", "transpose", "slice", "dynamic-slice", "gather", "concatenate", "pad"}
_SAME_ORDER = {"bitcast", "convert", "reshape"}


class Instruction(NamedTuple):
    """One instruction with an array as its result; `rest` is the text after the opening parenthesis."""

    root: bool
    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    opcode: str
    rest: str


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation that have an array as their result."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = found.setdefault(header[1], [])
        elif match := _INSTRUCTION.match(line):
            root, name, dtype, shape, layout, opcode, rest = match.groups()
            current.append(Instruction(bool(root), name, dtype, _numbers(shape), layout, opcode, rest))
    return found


def copies(text: str, arrays: Iterable[tuple[int, ...]], limit: int = 500_000) -> list[str]:
    """The instructions that copy, transpose or cut out one of `arrays` (shapes), as "opcode shape".

    A fusion counts as what its result is. What a TPU brings from its main memory into VMEM is no copy: that is how it
    reads. Arrays are recognised by their dimensions, in any order and without ones, so an activation of the same
    dimensions would be found too.

    Args:
      limit: arrays of fewer elements do not count.
    """
    wanted = {_key(shape) for shape in arrays if np.prod(shape) >= limit}
    body = computations(text)
    called = {match[1] for match in re.finditer(r" fusion\(.*calls=%?([\w.\-]+)", text)}
    found = []
    for name, instructions in body.items():
        if name in called:
            continue
        for instruction in instructions:
            opcode = instruction.opcode
            if opcode == "fusion":
                opcode = _result_of(body[re.search(r"calls=%?([\w.\-]+)", instruction.rest)[1]])
            on_chip = "S(1)" in instruction.layout
            if opcode in _COPIES and not on_chip and _key(instruction.shape) in wanted:
                found.append(f"{opcode} {instruction.dtype}{list(instruction.shape)}")
    return found


def _result_of(instructions: list[Instruction]) -> str:
    """The opcode that makes the result of a fused computation, before changes of shape and dtype alone."""
    by_name = {instruction.name: instruction for instruction in instructions}
    result = next((instruction for instruction in instructions if instruction.root), None)
    while result is not None and result.opcode in _SAME_ORDER:
        operand = re.search(r"%([\w.\-]+)", result.rest)
        result = by_name.get(operand[1]) if operand else None
    return result.opcode if result is not None else "parameter"


def _key(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
