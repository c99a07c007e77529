"""Search for the smallest change with which a step fits, by compiling candidates.

Changes that do not affect the results of the run come first (rematerialisation), then
more devices for the same batch, then changes that make it another run (fewer images).
The rematerialisation is kept in the later ones, since it was not enough by itself.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from dinov2_jax import errors
from dinov2_jax.aot import machines
from dinov2_jax.aot import step as step_lib
from dinov2_jax.config import checking
from dinov2_jax.models import remat

MAX_HALVINGS = 3
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
    remat_flags: list[str] = []
    names = list(remat.POLICIES)
    for name in names[names.index(config.model.remat) + 1 :]:
        config = _changed(config, remat=name)
        yield Change(f"--config.model.remat={name}", config, machine)
    if config.model.remat != names[0]:
        remat_flags.append(f"--config.model.remat={config.model.remat}")

    larger: machines.Machine | None = machine
    groups = config.train.batch_size // config.train.group_size
    for _ in range(MAX_DOUBLINGS):
        larger = larger.doubled()
        if larger is None:
            break
        if groups % larger.num_devices:
            break  # each device needs at least one group
        if not _is_valid(config, larger):
            continue  # a mesh or micro-batches of its own
        yield Change(
            " ".join([f"--topology={larger.name}", *remat_flags]), config, larger
        )

    for _ in range(MAX_HALVINGS):
        batch, group = config.train.batch_size // 2, config.train.group_size
        if (batch // group) % machine.num_devices or batch % group:
            group //= 2
        changed = _changed(config, batch_size=batch, group_size=group)
        if not _is_valid(changed, machine):
            return
        config = changed
        flags = [
            *remat_flags,
            f"--config.train.batch_size={batch}",
            f"--config.train.group_size={group}",
        ]
        yield Change(" ".join(flags), config, machine)


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


def _changed(config: Any, *, remat: str = "", **train: int) -> Any:
    """Return a copy of a config with another remat policy or `train` fields."""
    config = config.copy_and_resolve_references()
    if remat:
        config.model.remat = remat
    config.train.update(train)
    return config


def _is_valid(config: Any, machine: machines.Machine) -> bool:
    """Return whether a config is still valid on the machine."""
    if not config.train.batch_size or not config.train.group_size:
        return False
    try:
        checking.check(config)
        checking.check_devices(config, machine.num_devices)
    except errors.UserError:
        return False
    return True
