"""Device time of a step by the compiler's own cost model, from the optimised HLO.

XLA for TPUs writes `estimated_cycles` into the backend_config of most operations that
take time. Their sum over a step, with loops multiplied out, is the compiler's estimate
of how long the cores are busy; `cost_analysis` is not used, because it counts a loop's
body once. Our own kernels carry a cost estimate instead, which gives a roofline time: a
lower bound. Gathers and scatters of whole rows, concatenations, reversals, and reshapes
(which XLA only leaves where the tiles of the two shapes differ) have no figure: their
time is the bytes that they read and write over the memory's bandwidth.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Mapping

from dinov2_jax.aot import hlo

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN = 2**63 - 1
_MOVES = ("reshape", "concatenate", "reverse")
_KERNELS = ("tpu_custom_call",)
_COST = re.compile(r'"cost_estimate":\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Cycles:
    """The cores' work in one step.

    Attributes:
      total: Cycles of the operations that have a figure.
      by_scope: The same by place in the traced program, largest first.
      kernel_seconds: Lower bound of our own kernels' time, from their cost estimates.
      kernels: Number of kernel executions in a step.
      moving_seconds: Time of the gathers, scatters, reshapes, concatenations and
        reversals that have no figure.
      without_cost: Number of other operations, kernels included, whose cost the
        compiler does not know: they count as zero.
    """

    total: int
    by_scope: dict[str, int]
    kernel_seconds: float
    kernels: int
    moving_seconds: float
    without_cost: int


def count(module: hlo.Module, *, peak_flops: float, hbm_bandwidth: float) -> Cycles:
    """Sum the compiler's figures over one step.

    Args:
      module: The parsed program.
      peak_flops: Peak FLOP/s of a device, for kernels.
      hbm_bandwidth: Bytes/s of a device's memory, for kernels and data movement.
    """
    scopes: collections.Counter = collections.Counter()
    kernel_seconds, kernels, moved, unknown = 0.0, 0, 0, 0
    for name, times in module.executions.items():
        instructions = module.computations[name].instructions
        for instruction in instructions.values():
            figure = _CYCLES.search(instruction.attributes)
            if figure and int(figure[1]) != _UNKNOWN:
                scopes[_scope(instruction.op_name)] += times * int(figure[1])
            elif num_bytes := _moved_bytes(module, instructions, instruction):
                moved += times * num_bytes
            elif figure:
                unknown += times
            elif any(f'"{k}"' in instruction.attributes for k in _KERNELS):
                kernels += times
                cost = _COST.search(instruction.attributes)
                if cost:
                    flops, num_bytes = (
                        _field(cost[1], field) for field in ("flops", "bytes_accessed")
                    )
                    kernel_seconds += times * max(
                        flops / peak_flops, num_bytes / hbm_bandwidth
                    )
                else:
                    unknown += times
    return Cycles(
        total=scopes.total(),
        by_scope=dict(scopes.most_common()),
        kernel_seconds=kernel_seconds,
        kernels=kernels,
        moving_seconds=moved / hbm_bandwidth,
        without_cost=unknown,
    )


def _moved_bytes(
    module: hlo.Module,
    siblings: Mapping[str, hlo.Instruction],
    instruction: hlo.Instruction,
) -> int:
    """Return the bytes that a data movement reads and writes; 0 for anything else."""
    if instruction.opcode in _MOVES:
        read = [siblings[name].arrays for name in instruction.operands]
        arrays = itertools.chain(instruction.arrays, *read)
        return sum(array.num_bytes for array in arrays)
    if instruction.opcode != "fusion":  # XLA wraps every gather and scatter in one
        return 0
    inner = module.computations[dict(instruction.called())["calls"]].instructions
    total = 0
    for part in inner.values():
        if part.opcode == "gather":
            total += 2 * part.arrays[0].num_bytes
        elif part.opcode == "scatter":  # reads updates and target rows, writes rows
            total += 3 * inner[part.operands[-1]].arrays[0].num_bytes
    return total


def _field(text: str, name: str) -> float:
    match = re.search(rf'"{name}":"?([\d.e+]+)', text)
    return float(match[1]) if match else 0.0


def _scope(op_name: str) -> str:
    """Shorten "jit(step)/.../block/attn/qkv/dot_general" to "block/attn/qkv"."""
    if not op_name:
        return "(no name)"
    parts = op_name.split("/")
    if "block" in parts:
        return "/".join(parts[parts.index("block") : -1])
    return "/".join(parts[:3])
