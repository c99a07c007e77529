"""Search for the smallest change with which a step fits, by compiling candidates.

Changes that do not affect the results of the run come first (rematerialisation, then
micro-batches), then more devices for the same batch, then changes that make it another
run (fewer images). The rematerialisation is kept in the later ones, since it was not
enough by itself.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from dinov2_jax.aot import machines
from dinov2_jax.aot import step as step_lib
from dinov2_jax.config import less_memory

MAX_DOUBLINGS = 2


@dataclasses.dataclass(frozen=True)
class Change:
    """A config and machine that differ from the requested ones.

    Attributes:
      description: The flags to add.
      config: The config with the change, a copy.
      machine: The machine, changed or not.
      program: The compiled step; None before compilation.
    """

    description: str
    config: Any
    machine: machines.Machine
    program: step_lib.Program | None = None


def ladder(config: Any, machine: machines.Machine) -> Iterator[Change]:
    """Yield the changes in the order in which they are tried."""
    original, num_devices, kept = config, machine.num_devices, []
    for flags, changed in less_memory.keeping_results(config, num_devices):
        yield Change(" ".join(flags), changed, machine)
        if changed.train.micro_batches == original.train.micro_batches:
            config, kept = changed, flags

    larger: machines.Machine | None = machine
    groups = config.train.batch_size // config.train.group_size
    for _ in range(MAX_DOUBLINGS):
        larger = larger.doubled()
        if larger is None:
            break
        if groups % larger.num_devices:
            break  # each device needs at least one group
        if not less_memory.is_valid(config, larger.num_devices):
            continue  # a mesh or micro-batches of its own
        yield Change(" ".join([f"--topology={larger.name}", *kept]), config, larger)

    for flags, changed in less_memory.with_fewer_images(config, num_devices):
        yield Change(" ".join([*kept, *flags]), changed, machine)


def smallest_change(
    config: Any,
    machine: machines.Machine,
    compile_step: Callable[[Any, machines.Machine], step_lib.Program],
    progress: Callable[[str], None],
) -> Change | None:
    """Compile one change after the other until a step fits.

    Args:
      config: The config that does not fit.
      machine: The machine that it does not fit on.
      compile_step: Compiles a step: (config, machine) -> program.
      progress: Called with a line before and after each attempt.

    Returns:
      The first change that fits, with its program; None if none fits.
    """
    for change in ladder(config, machine):
        progress(f"trying {change.description}")
        program = compile_step(change.config, change.machine)
        memory = program.memory
        size = f"{abs(memory.excess) / 1e9:.1f} GB"
        verdict = f"fits, {size} to spare" if memory.fits else f"{size} too large"
        progress(f"  {verdict} ({program.seconds:.0f} s)")
        if memory.fits:
            return dataclasses.replace(change, program=program)
    return None
