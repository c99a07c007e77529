"""Device time that the compiler's own cost model gives a step, from the optimised HLO.

XLA for TPUs writes `estimated_cycles` into the backend_config of most operations that
take time. Their sum over a step, loops multiplied out, is what it believes the cores
are busy for; what `cost_analysis` reports counts a loop's body once and is not used.
Kernels of our own carry a cost estimate instead, of which the roofline is taken: a
lower bound.
"""

import collections
import dataclasses
import re

from dinov2_jax.aot import hlo

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN = 2**63 - 1
_KERNELS = ("tpu_custom_call",)
_COST = re.compile(r'"cost_estimate":\{([^}]*)\}')
_SCOPE = re.compile(r"jit\(\w+\)/|transpose\(|jvp\(|VisionTransformer\.|[()]")


@dataclasses.dataclass(frozen=True)
class Cycles:
    """The cores' work in one step.

    Attributes:
      total: Cycles of operations that carry a figure.
      by_scope: The same by place in the traced program, most first.
      kernel_seconds: Lower bound of our own kernels' time, from their cost estimates.
      kernels: Executions of them in a step.
      without_cost: Operations, kernels or others, of which the compiler says that it
        knows nothing, such as gathers left to the sparse cores: counted as nothing.
    """

    total: int
    by_scope: dict[str, int]
    kernel_seconds: float
    kernels: int
    without_cost: int


def count(module: hlo.Module, *, peak_flops: float, hbm_bandwidth: float) -> Cycles:
    """Sums the compiler's figures over one step.

    Args:
      module: Parsed.
      peak_flops: FLOP/s of a device, for kernels.
      hbm_bandwidth: Bytes/s of a device's memory, for kernels.
    """
    scopes: collections.Counter = collections.Counter()
    kernel_seconds, kernels, unknown = 0.0, 0, 0
    for name, times in module.executions.items():
        for instruction in module.computations[name].instructions.values():
            figure = _CYCLES.search(instruction.attributes)
            if figure and int(figure[1]) == _UNKNOWN:
                unknown += times
            elif figure:
                scopes[_scope(instruction.op_name)] += times * int(figure[1])
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
        without_cost=unknown,
    )


def _field(text: str, name: str) -> float:
    match = re.search(rf'"{name}":"?([\d.e+]+)', text)
    return float(match[1]) if match else 0.0


def _scope(op_name: str) -> str:
    """ "jit(step)/.../block/attn/qkv/dot_general" -> "block/attn/qkv"."""
    if not op_name:
        return "(no name)"
    parts = op_name.split("/")
    if "block" in parts:
        return "/".join(parts[parts.index("block") : -1])
    return "/".join(parts[:3])
