"""What a compiled program copies and how many bytes its steps read, from its optimised HLO text."""

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
_UPDATE = "dynamic-update-slice"
_NO_TRAFFIC = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "reshape",
    "after-all",
    "optimization-barrier",
}
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
_KERNELS = ("mosaic", "triton", "tpu_custom_call")


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
            made = _results_of(fused)
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


def traffic(text: str, trips: int) -> int:
    """Bytes of main memory that one step of a loop reads and writes, without those of attention kernels.

    Every instruction reads its operands and writes its result once; of an array that is cut or updated in place, the part.
    A TPU's arrays in VMEM do not count. Of branches the largest counts, of an inner loop all its steps. Kernels read as much
    of a cache as their tables say, which the HLO does not show.

    Args:
      trips: how often the loop runs; of several, the one with the largest traffic counts.
    """
    body = computations(text)
    steps = [
        _traffic(body, re.search(r"body=%?([\w.\-]+)", instruction.rest)[1])
        for instructions in body.values()
        for instruction in instructions
        if instruction.opcode == "while" and _trips(body, instruction) == trips
    ]
    return max(steps)


def _traffic(body: dict[str, list[Instruction]], name: str) -> int:
    by_name = {instruction.name: instruction for instruction in body[name]}
    return sum(_traffic_of(body, by_name, instruction) for instruction in body[name])


def _traffic_of(body: dict[str, list[Instruction]], by_name: dict[str, Instruction], instruction: Instruction) -> int:
    rest, opcode = instruction.rest, instruction.opcode
    if opcode in _NO_TRAFFIC or opcode.endswith("-done"):
        return 0
    if opcode == "while":
        return (_trips(body, instruction) or 1) * _traffic(body, re.search(r"body=%?([\w.\-]+)", rest)[1])
    if opcode == "conditional":
        listed = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", rest)
        listed += re.findall(r"%?([\w.\-]+)", (re.search(r"branch_computations=\{(.*?)\}", rest) or [0, ""])[1])
        return max(_traffic(body, branch) for branch in listed)
    if opcode == "call":
        return _traffic(body, re.search(r"to_apply=%?([\w.\-]+)", rest)[1])
    if opcode == "custom-call" and any(kernel in rest.split("custom_call_target=")[1][:40] for kernel in _KERNELS):
        return 0
    operands = [by_name[operand] for operand in re.findall(r"%([\w.\-]+)", rest.split("), ")[0]) if operand in by_name]
    reads, writes = [_bytes(operand) for operand in operands], _bytes(instruction)
    if fused := re.search(r"calls=%?([\w.\-]+)", rest):
        inside = body[fused[1]]
        reads = [min(pair) for pair in zip(reads, _parts_read(inside), strict=True)]
        updates = [_update(inside, result) for opcode, result in _results_of(inside) if opcode == _UPDATE]
        writes = sum(updates) or writes
    elif opcode == _UPDATE:
        reads, writes = reads[1:], reads[1]
    return sum(reads) + (0 if opcode.endswith("-start") else writes)


def _parts_read(fused: list[Instruction]) -> list[float]:
    """Of each parameter of a fusion, the bytes of the parts that are cut out of it, if nothing else reads it."""
    parameters = sorted((i for i in fused if i.opcode == "parameter"), key=lambda i: int(i.rest.split(")")[0]))
    found = []
    for parameter in parameters:
        readers = [i for i in fused if re.search(rf"%{re.escape(parameter.name)}\b", i.rest)]
        cut = [0 if i.opcode == _UPDATE and i.rest.startswith(f"%{parameter.name}") else _bytes(i) for i in readers]
        partly = all(i.opcode in ("dynamic-slice", "gather", "slice", _UPDATE) for i in readers)
        found.append(sum(cut) if partly else float("inf"))
    return found


def _update(fused: list[Instruction], result: Instruction) -> int:
    """Bytes that are written into an array by a fusion that updates a part of it in place."""
    by_name = {instruction.name: instruction for instruction in fused}
    while result.opcode != _UPDATE:
        result = by_name[re.search(r"%([\w.\-]+)", result.rest)[1]]
    return _bytes(by_name[re.findall(r"%([\w.\-]+)", result.rest)[1]])


def _bytes(instruction: Instruction) -> int:
    """Bytes of an array in main memory, or of a tuple's arrays."""
    if instruction.dtype != "tuple":
        parts = [(instruction.dtype, ",".join(map(str, instruction.shape)), instruction.layout)]
    else:
        parts = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", instruction.layout)
    return sum(
        _BITS[dtype] * int(np.prod(_numbers(shape))) // 8
        for dtype, shape, layout in parts
        if "S(1)" not in (layout or "")
    )


def _destination(instruction: Instruction) -> Instruction:
    """The array that an instruction makes: of a copy that is started, the first of its tuple."""
    first = re.match(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", instruction.layout)
    if instruction.opcode != "copy-start" or not first:
        return instruction
    return instruction._replace(dtype=first[1], shape=_numbers(first[2]), layout=first[3] or "")


def loops(text: str) -> list[int]:
    """How often each loop of the program runs, where that is a constant of its condition; the longest first."""
    body = computations(text)
    found = [_trips(body, i) for instructions in body.values() for i in instructions if i.opcode == "while"]
    return sorted(filter(None, found), reverse=True)


def _trips(body: dict[str, list[Instruction]], loop: Instruction) -> int | None:
    """How often a loop runs, where XLA notes it or it is a constant of its condition."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
    limits = [i.rest for i in body.get(condition, ()) if i.opcode == "constant" and i.dtype == "s32"]
    return max((int(rest.split(")")[0]) for rest in limits), default=None)


def _holds(stack: tuple[int, ...], key: tuple[int, ...]) -> bool:
    """Whether an array is the one with these dimensions, or a stack of such arrays."""
    return not Counter(key) - Counter(stack) and len(stack) - len(key) in (0, 1)


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
