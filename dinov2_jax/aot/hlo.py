"""A parser of optimised HLO text: computations, calls and loop trip counts.

The text is that of `jax.stages.Compiled.as_text()`, from XLA for CPUs, GPUs or TPUs.
Only what a report needs is kept; see https://openxla.org/xla/operation_semantics.
"""

import dataclasses
import functools
import math
import re

DTYPE_BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "c64": 64,
    "c128": 128,
    "bf16": 16,
} | {f"{kind}{bits}": bits for kind in "suf" for bits in (2, 4, 8, 16, 32, 64)}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = ")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRUE_FALSE = re.compile(r"\b(?:true|false)_computation=%?([\w.-]+)")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# These name a computation that is part of them or that an async-start has counted.
_PARTS = ("fusion", "async-update", "async-done")
# Operations that pass one value on unchanged.
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


@dataclasses.dataclass(frozen=True)
class Array:
    """The dtype and dimensions of one array.

    Attributes:
      dtype: Dtype in HLO's notation, for example "bf16".
      dims: Size of each dimension.
    """

    dtype: str
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes without the padding of the device's tiles."""
        return math.prod(self.dims) * DTYPE_BITS.get(self.dtype, 8) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: Name, unique in the computation.
      arrays: Arrays of the result; tuples are flattened in order.
      opcode: The operation, for example "fusion".
      operands: Names of the arguments; for a constant or parameter, its text.
      attributes: The rest of the line after the operands.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def op_name(self) -> str:
        """The path in the traced program that it came from; "" if unknown."""
        match = _OP_NAME.search(self.attributes)
        return match[1] if match else ""

    def called(self) -> list[tuple[str, str]]:
        """Return (role, computation) pairs; the role is the attribute or "branch"."""
        pairs = _CALLED.findall(self.attributes)
        names = [
            name.strip().lstrip("%")
            for text in _BRANCHES.findall(self.attributes)
            for name in text.split(",")
        ]
        names += _TRUE_FALSE.findall(self.attributes)
        return pairs + [("branch", name) for name in names]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: its instructions by name, in order; the root is the last."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(reversed(self.instructions.values()))


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program, for one device."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def executions(self) -> dict[str, int]:
        """How often each computation runs in one execution of the program.

        These are the entry, loop bodies and what they call. Fusions and reducers are
        not listed: they are part of the instruction that calls them. Every branch of
        a conditional counts as taken.
        """
        counts: dict[str, int] = {}
        pending = [(self.entry, 1)]
        while pending:
            name, count = pending.pop()
            counts[name] = counts.get(name, 0) + count
            for instruction in self.computations[name].instructions.values():
                if instruction.opcode in _PARTS:
                    continue
                for role, called in instruction.called():
                    if role == "to_apply" and instruction.opcode != "call":
                        continue
                    times = 1
                    if instruction.opcode == "while":
                        times = self.trip_count(instruction, name)
                    pending.append((called, count * times))
        return counts

    def trip_count(self, loop: Instruction, within: str) -> int:
        """Return the number of iterations of a `while`.

        Either the compiler states it, or start, limit and step of the counter are
        constants, as in `lax.scan`.

        Args:
          loop: The `while` instruction.
          within: Name of the computation that contains it.

        Raises:
          ValueError: The number of iterations is not a constant of the program.
        """
        known = _TRIP_COUNT.search(loop.attributes)
        if known:
            return int(known[1])
        roles = dict(loop.called())
        condition = self.computations[roles["condition"]]
        test = condition.root
        while test.opcode in ("fusion", *_SAME):
            if test.opcode == "fusion":
                inner = self.computations[dict(test.called())["calls"]]
                return self._trips(loop, within, inner.root, inner, condition, test)
            test = condition.instructions[test.operands[0]]
        return self._trips(loop, within, test, condition, condition, None)

    def _trips(self, loop, within, test, scope, condition, fusion) -> int:
        """Solve `start + n * step < limit`, the comparison `test` in `scope`."""

        def value(name):
            instruction = _origin(scope, name)
            if fusion is not None and instruction.opcode == "parameter":
                outer = fusion.operands[int(instruction.operands[0])]
                return _origin(condition, outer)
            return instruction

        fail = ValueError(f"the trip count of {loop.name} is not a constant")
        direction = re.search(r"direction=(\w+)", test.attributes)
        if test.opcode != "compare" or not direction:
            raise fail
        left, right = (value(name) for name in test.operands[:2])
        if left.opcode != "get-tuple-element" or right.opcode != "constant":
            raise fail
        index = _index(left)
        body = self.computations[dict(loop.called())["body"]]
        start = _element(self.computations[within], loop.operands[0], index)
        step = self._step(body, index)
        if start is None or start.opcode != "constant" or step is None:
            raise fail
        limit = int(right.operands[0]) + (direction[1] == "LE")
        return max(-(-(limit - int(start.operands[0])) // step), 0)

    def _step(self, body: Computation, index: int) -> int | None:
        """Return what an iteration adds to element `index` of the loop's tuple."""
        new = _element(body, body.root.name, index)
        if new is not None and new.opcode == "fusion":
            inner = self.computations[dict(new.called())["calls"]]
            new, body = _origin(inner, inner.root.name), inner
        if new is None or new.opcode != "add":
            return None
        for name in new.operands:
            term = _origin(body, name)
            if term.opcode == "constant":
                return int(term.operands[0])
        return None


def parse(text: str) -> Module:
    """Parse the text of a module."""
    computations, current, entry = {}, {}, ""
    for line in text.splitlines():
        line = re.sub(r"/\*[^*]*\*/", "", line)
        header = _HEADER.match(line)
        if header:
            current = {}
            computations[header[2]] = Computation(header[2], current)
            entry = header[2] if header[1] else entry
            continue
        start = _INSTRUCTION.match(line)
        if start:
            instruction = _instruction(start[1], line[start.end() :])
            for operand in instruction.operands:
                _add_element(current, operand)
            current[start[1]] = instruction
    return Module(computations, entry)


def _add_element(instructions: dict[str, Instruction], operand: str) -> None:
    """Add the get-tuple-element that newer XLA writes as `fusion.3#1`."""
    name, _, index = operand.partition("#")
    if index.isdecimal() and name in instructions and operand not in instructions:
        array = instructions[name].arrays[int(index)]
        instructions[operand] = Instruction(
            operand, (array,), "get-tuple-element", (name,), f", index={index}"
        )


def _instruction(name: str, text: str) -> Instruction:
    """Parse what follows `NAME = `: shape opcode(operands), attributes."""
    end = _closing(text, 0) + 1 if text[0] == "(" else text.index(" ")
    arrays = tuple(
        Array(dtype, tuple(int(d) for d in dims.split(",") if d))
        for dtype, dims in _ARRAY.findall(text[:end])
    )
    opening = text.index("(", end)
    closing = _closing(text, opening)
    operands = tuple(
        operand.split()[-1].lstrip("%")
        for operand in _split(text[opening + 1 : closing])
    )
    opcode = text[end:opening].strip()
    return Instruction(name, arrays, opcode, operands, text[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    """Return the position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")


def _split(text: str) -> list[str]:
    """Split at commas outside brackets; operands may include their shapes."""
    parts = re.split(r",(?![^({\[]*[)}\]])", text)
    return [part.strip() for part in parts if part.strip()]


def _origin(computation: Computation, name: str) -> Instruction:
    """Return the instruction that made a value, behind copies and conversions."""
    instruction = computation.instructions[name]
    while instruction.opcode in _SAME:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _element(computation: Computation, name: str, index: int) -> Instruction | None:
    """Return what made element `index` of a tuple; None if no `tuple` made it."""
    made = _origin(computation, name)
    if made.opcode != "tuple":
        return None
    return _origin(computation, made.operands[index])


def _index(element: Instruction) -> int:
    return int(re.search(r"index=(\d+)", element.attributes)[1])
