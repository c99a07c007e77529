"""One line for a device that has too little memory, with what needs less of it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dinov2_jax import errors, memory_errors
from dinov2_jax.config import less_memory


@contextlib.contextmanager
def explained(
    where: str,
    fix: Callable[[], str],
    exit_code: Callable[[], int] = lambda: errors.BAD_INPUT,
) -> Iterator[None]:
    """Turn jax's error about memory into a `UserError`; let others pass.

    Args:
      where: What needed it, to follow "out of memory".
      fix: Function that returns what to do.
      exit_code: Function that returns the exit code.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if (size := memory_errors.size_asked(error)) is None:
            raise
        raise errors.UserError(
            f"out of memory {where}{size}: {fix()}", exit_code=exit_code()
        ) from error


def of_step(config: Any, num_devices: int) -> str:
    """Return what to change in a config whose step needs too much memory.

    Args:
      config: The config of the run.
      num_devices: Devices of the run.
    """
    for flags, _ in less_memory.keeping_results(config, num_devices):
        return f"add {' '.join(flags)}, which changes the results by rounding alone"
    for flags, _ in less_memory.with_fewer_images(config, num_devices):
        return f"add {' '.join(flags)}, or use more devices or a smaller model"
    return "use more devices or a smaller model"
