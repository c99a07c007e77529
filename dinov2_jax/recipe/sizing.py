"""The batch and the steps of a run, from the memory and the hours given."""

import math
from typing import Any

from dinov2_jax import errors
from dinov2_jax.recipe import plan, request, rules

# Images of a batch, and the fewest of one of its parts (`train.micro_batches`).
WANTED_BATCH, _SMALLEST = 64, rules.BATCH_SIZES[0]
# Steps that a batch above `WANTED_BATCH` must leave, those of a run from trained
# weights (the paper's high-resolution phase), and the fewest of any run.
MANY_STEPS = 10_000
_FEWEST_STEPS = 1000
_MOST_STEPS = 10**8


def with_batch(config: Any, asked: request.Request, batch: int, parts: int = 1) -> Any:
    """Return a copy of a config with a batch, its groups and their drop path.

    Args:
      config: The config with the model and the heads.
      asked: The request.
      batch: Images of a step.
      parts: Parts in which it is computed, `train.micro_batches`.
    """
    config = config.copy_and_resolve_references()
    group = rules.group_size(batch // parts)
    config.train.update(batch_size=batch, group_size=group, micro_batches=parts)
    config.model.drop_path_rate = rules.drop_path(
        asked.size, group, trained=asked.trained
    )
    return config


def choose_batch(config: Any, asked: request.Request) -> Any:
    """Return the config with the images of a step, in parts if they do not fit at once.

    Args:
      config: The config with the model and the heads.
      asked: The request.

    Raises:
      UserError: No batch fits, or not the one that was asked for.
    """
    usable = plan.USABLE * asked.memory * 1e9
    if asked.images < max(_SMALLEST, asked.batch):
        raise errors.UserError(
            f"--images={asked.images}: fewer than a batch of "
            f"{max(_SMALLEST, asked.batch)} images: use frozen features instead, with "
            "dinov2-jax embed"
        )
    sizes = [size for size in rules.BATCH_SIZES if size <= asked.images]
    fitting = [size for size in sizes if _needed(config, asked, size) <= usable]
    if asked.batch:
        found = _in_parts(config, asked, asked.batch, usable)
        if found is not None:
            return found
        needed = _needed(config, asked, asked.batch)
        most = "a smaller model"
        if fitting:
            most = f"--batch={fitting[-1]}, a multiple of it"
        raise errors.UserError(
            f"--batch={asked.batch}: needs {needed / 1e9:.1f} GB, no equal parts of it "
            f"fit, and {plan.USABLE:.0%} of --device-memory={asked.memory:g} can be "
            f"used: use {most} or a larger device"
        )
    if not fitting:
        needed = _needed(config, asked, _SMALLEST)
        raise errors.UserError(
            f"--device-memory={asked.memory:g}: {asked.source or asked.arch} needs "
            f"{needed / 1e9:.1f} GB at the smallest batch, {_SMALLEST}, and "
            f"{plan.USABLE:.0%} of the memory can be used: use "
            f"{_remedy(config, asked, usable)}"
        )
    if fitting[-1] < WANTED_BATCH <= asked.images:
        found = _in_parts(config, asked, WANTED_BATCH, usable)
        if found is not None:
            return found
    batch = max(
        size
        for size in fitting
        if size <= WANTED_BATCH
        or most_steps(with_batch(config, asked, size), asked) >= MANY_STEPS
    )
    return with_batch(config, asked, batch)


def _needed(config: Any, asked: request.Request, batch: int) -> float:
    return plan.needed_bytes(with_batch(config, asked, batch))


def _in_parts(
    config: Any, asked: request.Request, batch: int, usable: float
) -> Any | None:
    """Return the config with a batch in as few parts as fit; None if none do."""
    for parts in range(1, batch + 1):
        whole = batch % parts == 0
        if whole and (parts == 1 or batch // parts >= _SMALLEST):
            made = with_batch(config, asked, batch, parts)
            if plan.needed_bytes(made) <= usable:
                return made
    return None


def _remedy(config: Any, asked: request.Request, usable: float) -> str:
    """Return what to use instead of a model of which no batch fits."""
    for other in asked.smaller():
        smaller = config.copy_and_resolve_references()
        smaller.model.update(arch=other.size, ffn_layer=other.model.ffn_layer)
        if _needed(smaller, other, _SMALLEST) <= usable:
            flag = (
                f"--source={other.source}" if other.source else f"--arch={other.arch}"
            )
            return f"{flag} or a larger device"
    needed = _needed(config, asked, _SMALLEST)
    return f"a device with {math.ceil(needed / plan.USABLE / 1e9)} GB or more"


def most_steps(config: Any, asked: request.Request) -> float:
    """Return the steps for which the hours suffice."""
    rate = plan.images_per_second(config, plan.peak_flops(asked.peak_name), asked.mfu)
    return 3600 * asked.hours * rate / config.train.batch_size


def choose_steps(config: Any, asked: request.Request) -> int:
    """Return the steps of a run, a round number that keeps to the hours.

    Args:
      config: The config with the model, the heads and the batch.
      asked: The request.

    Raises:
      UserError: The hours do not suffice for any run.
    """
    steps = most_steps(config, asked)
    if steps < _FEWEST_STEPS:
        hours = math.ceil(10 * asked.hours * _FEWEST_STEPS / steps) / 10
        raise errors.UserError(
            f"--hours={asked.hours:g}: enough for {steps:.0f} steps of "
            f"{config.train.batch_size} images, and a run needs {_FEWEST_STEPS}: give "
            f"--hours={hours:g} or more, or a faster --device"
        )
    if steps > _MOST_STEPS:
        raise errors.UserError(
            f"--hours={asked.hours:g}: enough for more than {_MOST_STEPS:,} steps of "
            f"{config.train.batch_size} images: give fewer hours"
        )
    if asked.trained:
        steps = min(steps, MANY_STEPS)
    unit = 100 if steps < MANY_STEPS else 1000
    return int(steps // unit * unit)
