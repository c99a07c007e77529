"""Cycles of a program on a TPU by the compiler's figures, without a TPU.

A TPU core issues one bundle of instructions per cycle, in order. So the scheduled
bundles, times how often they run, are a lower bound on the cycles of a Pallas kernel.
They leave out stalls, mainly on main memory, which are bounded here by bytes over
bandwidth. XLA's own operations have `estimated_cycles` in the optimised HLO. Both
numbers change with every change of the program.
"""

import collections
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from jax.extend import core

from dinov2_jax.aot import hlo

_BUNDLES = re.compile(r"^\d+-(.+)-\d+-final_bundles\.txt$")
# "  0x1f LB: >> {...": an address, perhaps a label, and one ">" per enclosing loop.
_BUNDLE = re.compile(r"^ *0x[0-9a-f]+ *(?:[A-Z]{2})? *: *(>*)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One Pallas kernel of a program.

    Attributes:
      name: The name given to `pallas_call`, or "".
      trips: Steps of the grid, then of each loop inside it, outermost first.
      skipped: Grid steps that only write what another step has computed.
    """

    name: str
    trips: tuple[int, ...]
    skipped: int = 0


def environment(dump: pathlib.Path | None) -> dict[str, str]:
    """Return the environment that a process needs to compile, before jax is imported.

    Args:
      dump: Folder for the compiler's schedules. None writes none, which saves minutes
        for large programs.
    """
    flags = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true" if dump else ""
    here = pathlib.Path(__file__).parents[1] / ".venv/libtpu/libtpu/libtpu.so"
    found = {"TPU_LIBRARY_PATH": str(here)} if here.exists() else {}
    return (
        found
        | os.environ
        | {
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "JAX_PLATFORMS": "cpu",
            "LIBTPU_INIT_ARGS": flags,
            "TPU_ACCELERATOR_TYPE": "v5litepod-8",
            "TPU_LOG_DIR": "disabled",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
        }
    )


def kernels(jaxpr: core.Jaxpr) -> list[Kernel]:
    """Return the Pallas kernels of a program, in order."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            grid = equation.params["grid_mapping"].grid
            inner = _loops(equation.params["jaxpr"])
            while inner and inner[-1] == 1:
                inner.pop()
            # Our backward kernel computes at the first of the last axis's three steps.
            name = equation.params["name"] or ""
            again = name == "attention_backward"
            skipped = math.prod(grid) * 2 // 3 if again else 0
            steps = math.prod(grid) - skipped
            found.append(Kernel(name, (steps, *inner), skipped))
        else:
            for inside in core.jaxprs_in_params(equation.params):
                found += kernels(inside)
    return found


def _loops(jaxpr) -> list[int]:
    """Return the trip counts of nested loops, the longest of each level."""
    levels: list[int] = []
    for equation in jaxpr.eqns:
        own = []
        if equation.primitive.name == "scan":
            own = [equation.params["length"]]
        for inside in core.jaxprs_in_params(equation.params):
            nested = own + _loops(inside)
            levels = [
                max(pair)
                for pair in zip(
                    levels + [0] * (len(nested) - len(levels)),
                    nested + [0] * (len(levels) - len(nested)),
                )
            ]
    return levels


def bundles(dump: pathlib.Path) -> dict[str, list[int]]:
    """Count the bundles of each kernel by the number of loops around them."""
    found = {}
    for path in dump.iterdir():
        match = _BUNDLES.match(path.name)
        if match and "schedule-analysis" not in path.name:
            depths = collections.Counter(
                len(bundle[1])
                for bundle in map(_BUNDLE.match, path.read_text().splitlines())
                if bundle
            )
            found[match[1]] = [depths[n] for n in range(max(depths, default=0) + 1)]
    return found


def kernel_cycles(by_depth: Sequence[int], kernel: Kernel) -> int:
    """Count the executed bundles: a lower bound on the cycles of one call."""
    # A step that only writes runs the grid loop's bundles and a copy.
    total = kernel.skipped * SKIPPED_STEP
    for depth, count in enumerate(by_depth):
        total += count * math.prod(kernel.trips[:depth])
    return total


# Counted in the schedule of `attention_backward` at 257 tokens: 230 for the transfers
# of a step and 100 for a copy.
SKIPPED_STEP = 330


def program_cycles(
    compiled_text: str, found: Sequence[Kernel], by_depth: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """Return the cycles of one execution by kernel, and of XLA's operations as "xla".

    Args:
      compiled_text: The optimised HLO.
      found: Kernels, from `kernels`.
      by_depth: Bundles of each kernel by loop depth, from `bundles`.
    """
    module = hlo.parse(compiled_text)
    cycles: collections.Counter = collections.Counter()
    for name, times in module.executions.items():
        for instruction in module.computations[name].instructions.values():
            figure = _CYCLES.search(instruction.attributes)
            if figure:
                cycles["xla"] += times * int(figure[1])
            elif '"tpu_custom_call"' in instruction.attributes:
                kernel = _called(instruction, found)
                one = kernel_cycles(by_depth[instruction.name], kernel)
                cycles[instruction.name] += times * one
    return dict(cycles)


def _called(instruction: hlo.Instruction, found: Sequence[Kernel]) -> Kernel:
    """Return the kernel of a custom call."""
    named = [k for k in found if k.name and k.name in instruction.name]
    # Unnamed kernels get the name of the enclosing function.
    candidates = named or found
    if len({(kernel.trips, kernel.skipped) for kernel in candidates}) != 1:
        raise ValueError(f"{instruction.name} may be any of {candidates}")
    return candidates[0]
