"""The memory of a recipe's step by the compiler, ahead of time."""

from typing import Any

from dinov2_jax import errors
from dinov2_jax.aot import machines

_USABLE = 0.92  # share of the memory that a program may use, as in `machines`


def machine_for(device: str) -> machines.Machine:
    """Return the one-device machine to compile for: the device, or else an H200.

    Args:
      device: Name of the device; another GPU's programs need about what an H200's do.
    """
    chip = machines.CHIPS.get(device.lower())
    if chip is None or chip.devices > 1:
        chip = machines.CHIPS["h200"]
    return machines.Machine(chip, (1,) * chip.axes)


def check(config: Any, machine: machines.Machine, memory: float) -> str:
    """Compile the step and return what it needs, in a sentence.

    Args:
      config: The config of the run.
      machine: The machine to compile for, prepared.
      memory: Memory of the user's device, GB.

    Raises:
      UserError: The step needs more than the device has.
    """
    from dinov2_jax.aot import step  # imports jax, which reads what `prepare` set

    program = step.compile_step(config, machine, {}, quick=True)
    needed = program.memory.needed / 1e9
    if needed > _USABLE * memory:
        raise errors.UserError(
            f"--device-memory={memory:g}: compiled for {machine.name}, a step of "
            f"{config.train.batch_size} images needs {needed:.1f} GB, and "
            f"{_USABLE:.0%} of the memory can be used: give a smaller --batch"
        )
    return (
        f"Compiled for {machine.name}, a step needs {needed:.1f} GB, and {_USABLE:.0%} "
        f"of {memory:g} GB can be used."
    )
