"""Reads from optimised HLO the number of bytes that the collectives of a compiled program move.

A collective inside a loop counts once per iteration. With the ring algorithms, each of n devices sends and
receives, for an operand or result of S bytes:

    all-gather          S (n - 1) / n   of the result
    reduce-scatter      S (n - 1) / n   of the operand
    all-reduce        2 S (n - 1) / n   a reduce-scatter, then an all-gather
    all-to-all          S (n - 1) / n
    collective-permute  S

References:
    Thakur et al. (2005), Optimization of collective communication operations in MPICH.
"""

import dataclasses
import math
import re
from collections import defaultdict

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BITS = dict(pred=8, bf16=16, token=0, opaque=0)  # the names of other types contain their width

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([\w\-]+)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: name, text of its shape, opcode, operands, and the text after the operands."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


@dataclasses.dataclass
class Traffic:
    """The traffic of one execution of a program, per device."""

    sent: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))  # bytes
    count: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    bounded: bool = False  # a loop's end depends on data: it counts with its maximum of iterations

    @property
    def total(self) -> float:
        return sum(self.sent.values())


def collectives(text: str, num_devices: int) -> Traffic:
    """Returns the traffic of a program.

    Args:
        text: `compiled.as_text()` of one SPMD program.
        num_devices: number of devices that it runs on.

    Raises:
        ValueError: the notation of a device group is unknown.
    """
    program, entry = parse(text)
    turns, bounded = _executions(program, entry)
    traffic = Traffic()
    for computation, times in turns.items():
        scope = program[computation]
        for instruction in scope.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # XLA:TPU writes a reduce-scatter as an all-reduce of which each device keeps a slice.
            if kind == "all-reduce" and any(
                i.is_root and i.opcode == "dynamic-slice" for i in scope.values()
            ):
                kind = "reduce-scatter"
            traffic.sent[kind] += times * _sent(scope, instruction, kind, num_devices)
            traffic.count[kind] += times
            traffic.bounded |= computation in bounded
    return traffic


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Returns the computations, each a dict of instructions by name, and the name of the entry."""
    program, entry, current = {}, "", {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = program.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    return program, entry


def _instruction(name: str, line: str, is_root: bool) -> Instruction:
    """Parses a line such as 'f32[8] add(%a, %b), metadata=…'; the shape of a tuple has brackets too."""
    at = _closing(line, 0) if line.startswith("(") else line.index(" ")
    found = _OPCODE.search(line, at)
    assert found, line[:200]
    end = _closing(line, found.end() - 1)
    inside = line[found.end() : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or (inside,)
    return Instruction(name, line[:at], found[1], operands, line[end:], is_root)


def _closing(line: str, start: int) -> int:
    """Returns the index after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(line)):
        depth += (line[i] == "(") - (line[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"bracket without end: {line[:200]}")


def _executions(program: dict, entry: str) -> tuple[dict[str, int], set[str]]:
    """Returns how often each computation runs in one execution, and those whose count is an upper bound."""
    turns: dict[str, int] = defaultdict(int)
    bounded = set()

    def visit(name: str, times: int, exact: bool) -> None:
        turns[name] += times
        if not exact:
            bounded.add(name)
        for instruction in program[name].values():
            inner, known = times, exact
            if instruction.opcode == "while":
                trips, known = _trips(program, program[name], instruction)
                inner, known = times * trips, known and exact
            for called in _called(instruction):
                if called in program:
                    visit(called, inner, known)

    visit(entry, 1, True)
    return turns, bounded


def _called(instruction: Instruction) -> list[str]:
    if instruction.opcode in ("async-update", "async-done"):  # their async-start names it too
        return []
    called = _CALLED.findall(instruction.rest)
    for names in _BRANCHES.findall(instruction.rest):
        called += [name.strip().lstrip("%") for name in names.split(",") if name.strip()]
    return called


def _trips(program: dict, scope: dict, loop: Instruction) -> tuple[int, bool]:
    """Returns the trip count of a loop, and whether the count is exact.

    Without the compiler's own count, it is the limit in the loop's condition less the counter's initial
    value. This is an upper bound if the condition has further terms, which can end the loop earlier.
    """
    if found := _TRIPS.search(loop.rest):
        return int(found[1]), True
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    assert condition, loop.rest[:200]
    inside = program[condition[1]]
    fused = [program[name] for i in inside.values() for name in _called(i) if name in program]
    tests = [i for part in (inside, *fused) for i in part.values() if "direction=LT" in i.rest]
    limits = [int(i.operands[0]) for part in (inside, *fused) for i in part.values() if _is_number(i)]
    if not tests or not limits:
        return 1, False
    root = next(i for i in inside.values() if i.is_root)
    exact = "direction=LT" in root.rest or (root.opcode == "fusion" and any(t.is_root for t in tests))
    return max(limits) - _start(inside, scope, loop), exact


def _is_number(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.shape.startswith("s32[]")


def _start(inside: dict, scope: dict, loop: Instruction) -> int:
    """Returns the counter's initial value: a constant in the loop's initial state; else 0."""
    read = [i for i in inside.values() if i.opcode == "get-tuple-element" and i.shape.startswith("s32[]")]
    state = scope[loop.operands[0]]
    starts = []
    for index in (int(found[1]) for i in read if (found := re.search(r"index=(\d+)", i.rest))):
        value = scope.get(state.operands[index]) if state.opcode == "tuple" else None
        while value is not None and value.opcode in ("copy", "bitcast"):
            value = scope.get(value.operands[0])
        if value is not None and _is_number(value):
            starts.append(int(value.operands[0]))
    return min(starts, default=0)


def _sent(scope: dict, instruction: Instruction, kind: str, num_devices: int) -> float:
    size = sum(num_bytes(scope[name].shape) for name in instruction.operands if name in scope)
    if kind == "collective-permute":
        return size
    n = _group_size(instruction.rest, num_devices)
    return size * {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n}.get(kind, (n - 1) / n)


def num_bytes(shape: str) -> int:
    """Returns the bytes of an array or a tuple from its shape in HLO text."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        bits = _BITS[dtype] if dtype in _BITS else 8 if dtype.startswith("f8") else int(dtype[1:])
        total += bits * math.prod(int(d) for d in dims.split(",") if d)
    return total // 8


def _group_size(rest: str, num_devices: int) -> int:
    """Returns the size of a group: '{{0,1},{2,3}}', '[groups,size]<=[…]', or "mesh['x'=4,'y'=2] {'x'}"."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])  # an axis, or a part of one
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if "replica_groups={}" in rest:
        return num_devices
    raise ValueError(f"groups of a collective: {rest[:200]}")
