"""The loop of a fine-tuning: over all devices, and resumed after it was killed.

A run is a function of data, seed and settings. The number of devices changes only the
rounding.
"""

import contextlib
import math
import pathlib
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from dinov2_jax import errors, progress_bar, sharding
from dinov2_jax.eval import saved_state
from dinov2_jax.eval.finetuning import finetuner

Batches = Callable[[int], Generator[tuple[np.ndarray, np.ndarray], None, None]]


def fit(
    tuner: finetuner.FineTuner,
    backbone: Any,
    batches: Batches,
    *,
    path: pathlib.Path,
    settings: dict[str, Any],
    every: int,
    devices: list[jax.Device] | None = None,
) -> tuple[Any, list[tuple[int, float]]]:
    """Train from the beginning, or from the saved state, to the end.

    Args:
      tuner: The functions of the training.
      backbone: Parameters of the backbone.
      batches: Function from the first step to the batches up to the last: uint8 images
        [N, S, S, C] and labels [N].
      path: File of the state.
      settings: All that the run depends on, values that JSON knows; the state of a run
        with others is refused.
      every: Steps between saves.
      devices: Devices to use, as many as divide the groups; None for all of this
        process.

    Returns:
      {"backbone", "head"} with all parameters, and (step, loss) at every save since the
      start or resume.

    Raises:
      UserError: The loss is not finite, or the saved state belongs to another run, or
        cannot be written.
    """
    recipe = tuner.recipe
    devices = jax.local_devices() if devices is None else devices
    mesh = sharding.make_mesh(
        devices=devices[: math.gcd(recipe.num_groups, len(devices))]
    )
    done, state = saved_state.restore(
        path, tuner.init(backbone), settings=settings, what="fine-tuning"
    )
    state = _place(state, mesh)
    backbone = _place(tuner.adaptation.kept(backbone), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_fn = jax.jit(
        tuner.step,
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    course, losses = [], []
    bar = progress_bar.Bar(recipe.steps, what="fine-tuning", unit="steps", done=done)
    exact = np.dtype(tuner.module.dtype) == np.float32
    with (
        contextlib.closing(bar),
        contextlib.closing(batches(done)) as iterator,
        jax.set_mesh(mesh),
        jax.default_matmul_precision("highest" if exact else "default"),
    ):
        for step, (images, labels) in enumerate(iterator, done):
            batch = [
                x.reshape(recipe.num_groups, recipe.group_size, *x.shape[1:])
                for x in (images, labels)
            ]
            batch = jax.device_put(batch, sharding.batch_sharding(mesh))
            state, loss = step_fn(state, backbone, *batch, tuner.scalars(step))
            losses.append(loss)
            if len(losses) > 1:  # the step before is done: the device stays busy
                losses[-2] = float(losses[-2])
            done = step + 1
            bar.update_to(done)
            if done % every == 0 or done == recipe.steps:
                course.append((done, _mean(losses, done)))
                losses = []
                saved_state.save(path, state, done=done, settings=settings)
    chosen = state.params if state.ema is None else state.ema
    return jax.jit(tuner.merge)(backbone, chosen), course


def _place(tree: Any, mesh: Any) -> Any:
    """Put a copy of a tree on the devices, divided as in pretraining."""
    shardings = sharding.state_shardings(tree, mesh)
    return jax.device_put(tree, shardings, may_alias=False)


def _mean(losses: list[Any], done: int) -> float:
    """Return the mean of losses; raise UserError if one is not finite."""
    values = np.array([float(loss) for loss in losses])
    if not np.isfinite(values).all():
        wrong = done - len(values) + int(np.flatnonzero(~np.isfinite(values))[0])
        raise errors.UserError(
            f"the loss is not finite at step {wrong}: pass a smaller --lr",
            exit_code=errors.NON_FINITE,
        )
    return float(values.mean())
