"""What a compiled program copies, read from its optimised HLO text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\](\S*) ([\w\-]+)\((.*)")
_TUPLE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = \((.*?)\) ([\w\-]+)\((.*)")
_COPIES = {"copy", "copy-start", "transpose", "slice", "dynamic-slice", "gather", "concatenate", "pad"}
_INTEGERS, _FLOATS = {"s8", "u8", "s4", "u4"}, {"f16", "bf16", "f32"}
_LARGE = 4 << 20
"""Elements of a cache in 16 bits that is kept in a TPU's main memory."""
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
            current.append(Instruction(bool(root), name, dtype, numbers_in(shape), layout, opcode, rest))
        elif match := _TUPLE.match(line):
            root, name, parts, opcode, rest = match.groups()
            current.append(Instruction(bool(root), name, "tuple", (), parts, opcode, rest))
    return found


def copies(
    text: str, arrays: Iterable[tuple[int, ...]], limit: int = 500_000, caches: Iterable[tuple[int, ...]] = ()
) -> list[str]:
    """The instructions that copy, transpose, cut out or widen one of `arrays` (shapes), as "opcode dtype[shape]".

    A fusion counts as what its results are. It widens an array of integers if it reads it, or a stack that holds it, and
    returns floats of its shape: weights in 8 bits that are written out before they are used. What a TPU brings from its
    main memory into VMEM does not count, because that is how it reads; a whole cache does, because kernels read parts of it.
    Arrays are recognised by their dimensions, in any order and without ones, so an activation of the same dimensions would
    be found too.

    Args:
      limit: arrays of fewer elements do not count.
      caches: those of `arrays` that are caches of all layers; in VMEM, ones of 8 MiB or more count.
    """
    wanted = {_key(shape) for shape in arrays if np.prod(shape) >= limit}
    not_on_chip = {_key(shape) for shape in caches if np.prod(shape) >= _LARGE}
    body = computations(text)
    called = {match[1] for match in re.finditer(r" fusion\(.*calls=%?([\w.\-]+)", text)}
    found = []
    for instruction in (i for name, instructions in body.items() if name not in called for i in instructions):
        made, integers = [(instruction.opcode, _destination(instruction))], []
        if instruction.opcode == "fusion":
            fused = body[re.search(r"calls=%?([\w.\-]+)", instruction.rest)[1]]
            integers = [_key(i.shape) for i in fused if i.opcode == "parameter" and i.dtype in _INTEGERS]
            made = results_of(fused)
            if instruction.dtype != "tuple":
                made = [(opcode, instruction) for opcode, _ in made]
        for opcode, result in made:
            key, on_chip = _key(result.shape), "S(1)" in result.layout
            if key not in wanted or on_chip and key not in not_on_chip:
                continue
            if opcode in _COPIES:
                found.append(f"{opcode} {result.dtype}{list(result.shape)}")
            elif result.dtype in _FLOATS and any(_holds(read, key) for read in integers):
                found.append(f"widen {result.dtype}{list(result.shape)}")
    return found


def collectives(text: str) -> dict[str, int]:
    """How many collective operations of each kind the program has; those of a loop's body count once."""
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    counts = Counter(
        i.opcode.removesuffix("-start") for instructions in computations(text).values() for i in instructions
    )
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def _destination(instruction: Instruction) -> Instruction:
    """The array that an instruction makes: of a copy that is started, the first of its tuple."""
    first = re.match(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", instruction.layout)
    if instruction.opcode != "copy-start" or not first:
        return instruction
    return instruction._replace(dtype=first[1], shape=numbers_in(first[2]), layout=first[3] or "")


def loops(text: str) -> list[int]:
    """How often each loop of the program runs, where that is a constant of its condition; the longest first."""
    body = computations(text)
    found = [trips_of(body, i) for instructions in body.values() for i in instructions if i.opcode == "while"]
    return sorted(filter(None, found), reverse=True)


def trips_of(body: dict[str, list[Instruction]], loop: Instruction) -> int | None:
    """How often a loop runs, where XLA notes it or it is a constant of its condition."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
    limits = [i.rest for i in body.get(condition, ()) if i.opcode == "constant" and i.dtype == "s32"]
    return max((int(rest.split(")")[0]) for rest in limits), default=None)


def _holds(stack: tuple[int, ...], key: tuple[int, ...]) -> bool:
    """Whether an array is the one with these dimensions, or a stack of such arrays."""
    return not Counter(key) - Counter(stack) and len(stack) - len(key) in (0, 1)


def results_of(instructions: list[Instruction]) -> list[tuple[str, Instruction]]:
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


def numbers_in(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
