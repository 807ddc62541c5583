"""What one step of a loop, such as a decoding step, reads, writes and takes, from a program's optimised HLO text."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from hlo import Instruction, computations, numbers_in, results_of, trips_of

Body = dict[str, list[Instruction]]
_UPDATE = "dynamic-update-slice"
_CUTS = ("dynamic-slice", "gather", "slice")
_NOTHING = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "reshape",
    "after-all",
    "optimization-barrier",
)
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
_KERNELS = ("mosaic", "triton", "tpu_custom_call")


def traffic(text: str, trips: int) -> int:
    """Bytes of main memory that a step reads and writes, without those of attention kernels.

    Every instruction reads its operands and writes its result once; of an array that is cut or updated in place, the part.
    A TPU's arrays in VMEM do not count. Kernels read as much of a cache as their tables say, which the HLO does not show.

    Args:
      trips: how often the loop runs; of several loops, the one with the largest sum counts.
    """
    return _of_a_step(text, trips, _traffic)


def cycles(text: str, trips: int) -> int:
    """Cycles that XLA for TPUs estimates for the fusions of a step, apart from its waiting for memory; 0 on GPUs."""

    def estimated(body: Body, by_name: dict[str, Instruction], instruction: Instruction) -> int:
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        return int(found[1]) if found else 0

    return _of_a_step(text, trips, estimated)


def _of_a_step(text: str, trips: int, cost: Callable[[Body, dict[str, Instruction], Instruction], int]) -> int:
    """The sum of what instructions cost. Of branches the largest counts, of an inner loop all its steps."""
    body = computations(text)

    def total(name: str) -> int:
        by_name = {instruction.name: instruction for instruction in body[name]}
        return sum(each(by_name, instruction) for instruction in body[name])

    def each(by_name: dict[str, Instruction], instruction: Instruction) -> int:
        rest = instruction.rest
        match instruction.opcode:
            case "while":
                return (trips_of(body, instruction) or 1) * total(re.search(r"body=%?([\w.\-]+)", rest)[1])
            case "conditional":
                listed = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", rest)
                listed += re.findall(r"%?([\w.\-]+)", (re.search(r"branch_computations=\{(.*?)\}", rest) or [0, ""])[1])
                return max(map(total, listed))
            case "call":
                return total(re.search(r"to_apply=%?([\w.\-]+)", rest)[1])
            case _:
                return cost(body, by_name, instruction)

    loops = [i for instructions in body.values() for i in instructions if i.opcode == "while"]
    return max(total(re.search(r"body=%?([\w.\-]+)", i.rest)[1]) for i in loops if trips_of(body, i) == trips)


def _traffic(body: Body, by_name: dict[str, Instruction], instruction: Instruction) -> int:
    rest, opcode = instruction.rest, instruction.opcode
    if opcode in _NOTHING or opcode.endswith("-done"):
        return 0
    if opcode == "custom-call" and any(kernel in rest.split("custom_call_target=")[1][:40] for kernel in _KERNELS):
        return 0
    reads, writes = [_bytes(by_name[operand]) for operand in _operands(instruction)], _bytes(instruction)
    if fused := re.search(r"calls=%?([\w.\-]+)", rest):
        inside = body[fused[1]]
        reads = [min(pair) for pair in zip(reads, _parts_read(body, inside), strict=True)]
        updates = [_update(inside, result) for opcode, result in results_of(inside) if opcode == _UPDATE]
        writes = sum(updates) or writes
    elif opcode == _UPDATE:
        reads, writes = reads[1:], reads[1]
    elif opcode == "custom-call" and "__cublas" in rest:
        writes = _sizes(instruction)[0]  # and not its workspace
    return sum(reads) + (0 if opcode.endswith("-start") else writes)


def _parts_read(body: Body, fused: list[Instruction]) -> list[int]:
    """Of each parameter of a fusion, the bytes that are read: of the parts that are cut out of it, if nothing else reads it."""
    parameters = sorted((i for i in fused if i.opcode == "parameter"), key=lambda i: int(i.rest.split(")")[0]))
    return [min(_bytes(parameter), _part_read(body, fused, parameter)) for parameter in parameters]


def _part_read(body: Body, fused: list[Instruction], array: Instruction) -> int:
    if array.root:
        return _bytes(array)
    found = 0
    for reader in fused:
        places = [place for place, operand in enumerate(_operands(reader)) if operand == array.name]
        if not places or (reader.opcode == _UPDATE and places == [0]):
            continue
        if reader.opcode in _CUTS:
            found += _bytes(reader)
        elif _is_renamed(body, reader):
            found += min(_bytes(reader), _part_read(body, fused, reader))
        elif reader.opcode == "fusion":
            inside = _parts_read(body, body[re.search(r"calls=%?([\w.\-]+)", reader.rest)[1]])
            found += sum(inside[place] for place in places)
        else:
            return _bytes(array)
    return found


def _is_renamed(body: Body, reader: Instruction) -> bool:
    """Whether what an instruction returns is what it reads, as a whole."""
    if reader.opcode != "fusion":
        return reader.opcode in ("bitcast", "get-tuple-element")
    inside = body[re.search(r"calls=%?([\w.\-]+)", reader.rest)[1]]
    return "output_to_operand_aliasing" in reader.rest or {i.opcode for i in inside} <= {"parameter", "bitcast"}


def _operands(instruction: Instruction) -> list[str]:
    return re.findall(r"%([\w.\-]+)", instruction.rest.split("), ")[0])


def _update(fused: list[Instruction], result: Instruction) -> int:
    """Bytes that are written into an array by a fusion that updates a part of it in place."""
    by_name = {instruction.name: instruction for instruction in fused}
    while result.opcode != _UPDATE:
        result = by_name[_operands(result)[0]]
    return _bytes(by_name[_operands(result)[1]])


def _bytes(instruction: Instruction) -> int:
    """Bytes of an array in main memory, or of a tuple's arrays."""
    return sum(_sizes(instruction))


def _sizes(instruction: Instruction) -> list[int]:
    """Bytes in main memory of each array of a result."""
    if instruction.dtype != "tuple":
        parts = [(instruction.dtype, ",".join(map(str, instruction.shape)), instruction.layout)]
    else:
        parts = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", instruction.layout)
    sizes = ((_BITS[dtype] * int(np.prod(numbers_in(shape))) // 8, layout) for dtype, shape, layout in parts)
    return [0 if "S(1)" in (layout or "") else size for size, layout in sizes]
