"""Changes of a config with which a step needs less memory, mildest first."""

from collections.abc import Iterator
from typing import Any

from dinov2_jax import errors
from dinov2_jax.config import checking
from dinov2_jax.models import remat

MAX_HALVINGS = 3
MAX_PARTS = 3


def keeping_results(config: Any, num_devices: int) -> Iterator[tuple[list[str], Any]]:
    """Yield changes that leave the results as they are.

    First the policies of rematerialisation that keep less, then, with the last of them,
    more micro-batches, each time at least twice as many.

    Args:
      config: The config that does not fit; it is not changed.
      num_devices: Devices of the run.

    Yields:
      (flags, config with the change).
    """
    flags: list[str] = []
    names = list(remat.POLICIES)
    for name in names[names.index(config.model.remat) + 1 :]:
        config = config.copy_and_resolve_references()
        config.model.remat = name
        flags = [f"--config.model.remat={name}"]
        yield flags, config
    found, parts = 0, config.train.micro_batches
    on_device = config.train.batch_size // config.train.group_size // num_devices
    for count in range(2, on_device + 1):
        if on_device % count or count < 2 * parts or found == MAX_PARTS:
            continue
        changed = config.copy_and_resolve_references()
        changed.train.micro_batches = count
        if is_valid(changed, num_devices):
            found, parts = found + 1, count
            yield [*flags, f"--config.train.micro_batches={count}"], changed


def with_fewer_images(config: Any, num_devices: int) -> Iterator[tuple[list[str], Any]]:
    """Yield changes that halve the batch again and again, which makes another run.

    Groups are halved where each device would have less than one.

    Args:
      config: The config that does not fit; it is not changed.
      num_devices: Devices of the run.

    Yields:
      (flags, config with the change).
    """
    for _ in range(MAX_HALVINGS):
        batch, group = config.train.batch_size // 2, config.train.group_size
        if (batch // group) % num_devices or batch % group:
            group //= 2
        config = config.copy_and_resolve_references()
        config.train.update(batch_size=batch, group_size=group)
        if not is_valid(config, num_devices):
            return
        yield (
            [
                f"--config.train.batch_size={batch}",
                f"--config.train.group_size={group}",
            ],
            config,
        )


def is_valid(config: Any, num_devices: int) -> bool:
    """Return whether a config is valid on so many devices.

    Args:
      config: The config.
      num_devices: Devices of the run.
    """
    if not config.train.batch_size or not config.train.group_size:
        return False
    try:
        checking.check(config)
        checking.check_devices(config, num_devices)
    except errors.UserError:
        return False
    return True
