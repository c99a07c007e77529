"""The collectives of one step, from the optimised HLO.

A gather counts as one in whatever form the compiler writes it: in one operation, as a
-start/-done pair, in pieces fused with the arithmetic that hides it, or as a sum of
zero-padded shards (which moves twice the bytes; XLA does so if a shard is smaller than
a tile).
"""

import dataclasses
import math
import re
from collections.abc import Collection

from dinov2_jax import sharding
from dinov2_jax.aot import hlo

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
)
# A sum of zero-padded shards: an all-gather that moves the bytes of an all-reduce.
PADDED_GATHER = "all-gather by all-reduce"
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of one dtype in the program.

    Attributes:
      kind: One of `KINDS`, or `PADDED_GATHER`.
      dtype: Dtype of the arrays.
      shapes: Shapes of the full arrays: a gather's results, a reduction's operands.
      count: Number of executions in a step.
      group_size: Number of devices that take part together.
      op_name: Place in the traced program that it came from.
    """

    kind: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    count: int
    group_size: int
    op_name: str

    @property
    def payload_bytes(self) -> int:
        """Bytes of the full arrays, over a step."""
        arrays = (hlo.Array(self.dtype, dims) for dims in self.shapes)
        return self.count * sum(array.num_bytes for array in arrays)

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in a step, with the usual ring algorithms."""
        if self.kind == "collective-permute":
            return float(self.payload_bytes)
        passes = 2 if self.kind in ("all-reduce", PADDED_GATHER) else 1
        return passes * self.payload_bytes * (1 - 1 / self.group_size)


def find(module: hlo.Module, num_devices: int) -> list[Collective]:
    """Return all collectives of a step.

    Args:
      module: The parsed program.
      num_devices: Devices of the program; the group size if the text names no group.
    """
    found, seen = [], set()
    for name, count in module.executions.items():
        for scope, instruction, fused in _with_fused(module, module.computations[name]):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            if fused and channel:  # the pieces of one collective share its channel
                key = (name, kind, channel[1])
                if key in seen:
                    continue
                seen.add(key)
            found += _by_dtype(module, scope, instruction, kind, count, num_devices)
    return found


def _with_fused(module, computation):
    """Yield (computation, instruction, whether fused), including fusions' contents."""
    for instruction in computation.instructions.values():
        yield computation, instruction, False
        if instruction.opcode == "fusion":
            inner = module.computations[dict(instruction.called())["calls"]]
            for scope, fused, _ in _with_fused(module, inner):
                yield scope, fused, True


def _by_dtype(module, scope, instruction, kind, count, num_devices) -> list[Collective]:
    """Return one `Collective` for each dtype that an instruction moves."""
    operands = [scope.instructions[name] for name in instruction.operands]
    arrays = [array for operand in operands for array in operand.arrays]
    group_size = _group_size(instruction.attributes, num_devices)
    if kind == "all-gather":
        # The result of -start is (operands, results).
        arrays = list(instruction.arrays[-len(arrays) :])
    elif kind == "all-reduce":
        if scope.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # XLA for TPUs fuses the sum and the slice
        elif all(_is_padded(module, scope, operand) for operand in operands):
            kind = PADDED_GATHER
    return [
        Collective(
            kind,
            dtype,
            tuple(array.dims for array in arrays if array.dtype == dtype),
            count,
            group_size,
            instruction.op_name,
        )
        for dtype in sorted({array.dtype for array in arrays})
    ]


def _is_padded(module, scope, instruction) -> bool:
    """Return whether an array is zero except for one shard written into it."""
    while instruction.opcode in ("fusion", "copy", "bitcast", "copy-done"):
        if instruction.opcode == "fusion":
            scope = module.computations[dict(instruction.called())["calls"]]
            instruction = scope.root
        elif instruction.operands[0] in scope.instructions:
            instruction = scope.instructions[instruction.operands[0]]
    return instruction.opcode == "dynamic-update-slice"


def _group_size(attributes: str, num_devices: int) -> int:
    """Parse the size of a replica group, in any of the forms that HLO uses."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(_MESH_AXIS.findall(mesh[1]))
        return math.prod(int(sizes[a]) for a in re.findall(r"'([^']+)'", mesh[2]))
    if iota := _IOTA_GROUPS.search(attributes):
        return int(iota[2])
    if (listed := _LISTED_GROUPS.search(attributes)) and listed[1]:
        return len(listed[1].split(","))
    return num_devices


def weight_shapes(leaves: Collection[tuple[tuple[int, ...], bool]]) -> set[tuple]:
    """Return the shapes, without axes of size 1, in which weights appear in a step.

    Args:
      leaves: (shape, whether stacked) of every parameter. The first axis of a stacked
        one is the block; a step uses one block at a time or all.
    """
    shapes = set()
    for shape, stacked in leaves:
        shapes.add(_squeezed(shape))
        if stacked:
            shapes.add(_squeezed(shape[1:]))
    return shapes


def float32_weight_gathers(
    collectives: list[Collective], weights: set[tuple]
) -> list[Collective]:
    """Return the gathers of weights that were not cast to bfloat16 first.

    Weights that are too small to be sharded are left out.
    """
    return [
        c
        for c in collectives
        if c.kind in ("all-gather", PADDED_GATHER)
        and c.dtype == "f32"
        and any(
            _is_weight(dims, weights) and math.prod(dims) >= sharding.MIN_SHARDED_SIZE
            for dims in c.shapes
        )
    ]


def activation_gathers(
    collectives: list[Collective], weights: set[tuple]
) -> list[Collective]:
    """Return gathers of 1 MiB or more that are no weights: activations, by mistake."""
    return [
        c
        for c in collectives
        if c.kind == "all-gather"
        and any(
            not _is_weight(dims, weights)
            and hlo.Array(c.dtype, dims).num_bytes >= 2**20
            for dims in c.shapes
        )
    ]


def _is_weight(dims: tuple[int, ...], weights: set[tuple]) -> bool:
    """Return whether an array is a weight, perhaps reshaped or padded to tiles."""
    shape = _squeezed(dims)
    return any(
        math.prod(shape) == math.prod(weight)
        or len(shape) == len(weight)
        and all(size <= padded <= 1.1 * size for padded, size in zip(shape, weight))
        for weight in weights
    )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
