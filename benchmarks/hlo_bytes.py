"""Bytes that a compiled program moves between memory and its loops' bodies, from the compiler's own listing.

XLA's cost analysis counts a loop's body once. Here it counts as often as the listing says that it runs. Every
instruction reads its operands and writes its result; one that reads a slice of an array, or writes into one in place,
touches the slice only.
"""

import dataclasses
import math
import re

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_MOVES_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all"}


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    size: int
    kind: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


def bytes_moved(hlo: str) -> int:
    """Of a program as `compiled.as_text()` lists it."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry = current = ""
    for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
        if line.startswith(("%", "ENTRY")):
            current = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
            entry = current if line.startswith("ENTRY") else entry
            computations[current] = {}
        elif match := _INSTRUCTION.match(line):
            root, name, shape, kind, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("),")[0]))
            computations[current][name] = _Instruction(name, _size(shape), kind, operands, rest, bool(root))
    return _of_computation(computations, entry)


def _size(shape: str) -> int:
    return sum(_BYTES[dtype] * math.prod(map(int, filter(None, sizes.split(",")))) for dtype, sizes in
               _ARRAY.findall(shape))  # fmt: skip


def _called(instruction: _Instruction, role: str) -> str:
    match = re.search(rf"{role}=%?([\w.\-]+)", instruction.rest)
    assert match is not None, instruction.rest
    return match[1]


def _of_computation(computations: dict[str, dict[str, _Instruction]], name: str) -> int:
    instructions = computations[name]
    total = 0
    for instruction in instructions.values():
        if instruction.kind in _MOVES_NOTHING:
            continue
        if instruction.kind == "while":
            times = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
            assert times is not None, f"a loop of unknown length: {instruction.rest[:200]}"
            total += int(times[1]) * _of_computation(computations, _called(instruction, "body"))
        elif instruction.kind == "call":
            total += _of_computation(computations, _called(instruction, "to_apply"))
        elif instruction.kind == "conditional":
            raise ValueError("which branch runs is not in the listing")
        elif instruction.kind == "fusion":
            total += _of_fusion(computations[_called(instruction, "calls")])
        else:
            total += _alone(instruction, instructions)
    return total


def _alone(instruction: _Instruction, instructions: dict[str, _Instruction]) -> int:
    if instruction.kind in ("dynamic-slice", "slice"):
        return 2 * instruction.size
    if instruction.kind == "dynamic-update-slice":
        return 2 * instructions[instruction.operands[1]].size
    return instruction.size + sum(instructions[name].size for name in instruction.operands if name in instructions)


def _of_fusion(inside: dict[str, _Instruction]) -> int:
    return sum(_read(inside, p) for p in inside.values() if p.kind == "parameter") + sum(
        _written(inside, i) for i in inside.values() if i.is_root
    )


def _read(inside: dict[str, _Instruction], value: _Instruction) -> int:
    """Bytes of a fusion's parameter, or of a part of it, that the fusion reads."""
    if value.is_root:
        return value.size
    total = 0
    for user in inside.values():
        if value.name not in user.operands:
            continue
        if user.kind in ("bitcast", "dynamic-slice", "slice"):
            total += _read(inside, user)
        elif not (user.kind == "dynamic-update-slice" and user.operands[0] == value.name):
            return value.size
    return min(total, value.size)


def _written(inside: dict[str, _Instruction], root: _Instruction) -> int:
    if root.kind == "tuple":
        return sum(_written(inside, inside[name]) for name in root.operands)
    if root.kind == "bitcast":
        return _written(inside, inside[root.operands[0]])
    return inside[root.operands[1]].size if root.kind == "dynamic-update-slice" else root.size
