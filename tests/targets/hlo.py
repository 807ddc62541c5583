"""What a compiled program copies, read from its optimised HLO text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\](\S*) ([\w\-]+)\((.*)")
_TUPLE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = \((.*?)\) ([\w\-]+)\((.*)")
_COPIES = {"copy", "copy-start", "transpose", "slice", "dynamic-slice", "gather", "concatenate", "pad"}
_SAME_ORDER = {"bitcast", "convert", "reshape"}


class Instruction(NamedTuple):
    """One instruction; `rest` is the text after the opening parenthesis. A tuple has its parts' text as its layout."""

    root: bool
    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    opcode: str
    rest: str


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = found.setdefault(header[1], [])
        elif match := _INSTRUCTION.match(line):
            root, name, dtype, shape, layout, opcode, rest = match.groups()
            current.append(Instruction(bool(root), name, dtype, _numbers(shape), layout, opcode, rest))
        elif match := _TUPLE.match(line):
            root, name, parts, opcode, rest = match.groups()
            current.append(Instruction(bool(root), name, "tuple", (), parts, opcode, rest))
    return found


def copies(text: str, arrays: Iterable[tuple[int, ...]], limit: int = 500_000) -> list[str]:
    """The instructions that copy, transpose or cut out one of `arrays` (shapes), as "opcode shape".

    A fusion counts as what its results are. What a TPU brings from its main memory into VMEM is no copy: that is how it
    reads. Arrays are recognised by their dimensions, in any order and without ones, so an activation of the same
    dimensions would be found too.

    Args:
      limit: arrays of fewer elements do not count.
    """
    wanted = {_key(shape) for shape in arrays if np.prod(shape) >= limit}
    body = computations(text)
    called = {match[1] for match in re.finditer(r" fusion\(.*calls=%?([\w.\-]+)", text)}
    found = []
    for instruction in (i for name, instructions in body.items() if name not in called for i in instructions):
        made = [(instruction.opcode, instruction)]
        if instruction.opcode == "fusion":
            made = _results_of(body[re.search(r"calls=%?([\w.\-]+)", instruction.rest)[1]])
            if instruction.dtype != "tuple":
                made = [(opcode, instruction) for opcode, _ in made]
        for opcode, result in made:
            on_chip = "S(1)" in result.layout
            if opcode in _COPIES and not on_chip and _key(result.shape) in wanted:
                found.append(f"{opcode} {result.dtype}{list(result.shape)}")
    return found


def _results_of(instructions: list[Instruction]) -> list[tuple[str, Instruction]]:
    """What a fused computation returns: the opcode that makes each result, before changes of shape and dtype alone."""
    by_name = {instruction.name: instruction for instruction in instructions}
    root = next(instruction for instruction in instructions if instruction.root)
    names = re.findall(r"%([\w.\-]+)", root.rest.split(")")[0]) if root.opcode == "tuple" else [root.name]
    found = []
    for result in (by_name[name] for name in names):
        made = result
        while made.opcode in _SAME_ORDER and (operand := re.search(r"%([\w.\-]+)", made.rest)):
            made = by_name[operand[1]]
        found.append((made.opcode, result))
    return found


def _key(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
