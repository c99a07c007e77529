"""Training of a head on dense features of a frozen backbone, in one jitted step.

A run is a function of data, seed and settings: images and their augmentation follow
from the seed and the step. So a killed run resumes from its last save to the same
weights, and the number of devices changes only the rounding.
"""

import concurrent.futures
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov2_jax import errors, files, progress_bar
from dinov2_jax.eval import batch_placement

Sample = tuple[np.ndarray, np.ndarray]
# Head's parameters, features, targets, step -> loss, new statistics of the head.
Loss = Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
      steps: Number of steps.
      batch_size: Number of images of a step.
      lr: Function from the step to the learning rate.
      beta1: Function from the step to AdamW's first beta.
      weight_decay: Weight decay of all parameters.
      clip: Largest norm of the gradient; 0 for none.
      seed: Seed of order and augmentation.
    """

    steps: int
    batch_size: int
    lr: Callable[[int], float]
    beta1: Callable[[int], float] = lambda step: 0.9
    weight_decay: float = 1e-4
    clip: float = 0.0
    seed: int = 0


def index_at(position: int, length: int, seed: int) -> int:
    """Return the image at a place of an endless sequence of shuffled passes.

    Args:
      position: Place in the sequence, from 0.
      length: Number of images.
      seed: Seed of the order.
    """
    return int(_order(length, seed, position // length)[position % length])


@functools.lru_cache(maxsize=2)
def _order(length: int, seed: int, pass_number: int) -> np.ndarray:
    return np.random.default_rng((seed, pass_number)).permutation(length)


def batches(
    sample: Callable[[int, np.random.Generator], Sample],
    length: int,
    recipe: Recipe,
    *,
    start: int,
    workers: int,
) -> Iterator[Sample]:
    """Yield the batches of the steps from `start`, prepared ahead in threads.

    Args:
      sample: Function that reads and augments an image by index.
      length: Number of images.
      recipe: How the head is trained.
      start: The first step.
      workers: Number of threads.

    Yields:
      Images [B, H, W, 3] and targets [B, H, W].
    """

    def one(position):
        rng = np.random.default_rng((recipe.seed, 1, position))
        return sample(index_at(position, length, recipe.seed), rng)

    def ask(step):
        first = step * recipe.batch_size
        return [pool.submit(one, first + i) for i in range(recipe.batch_size)]

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = [ask(step) for step in range(start, min(start + 2, recipe.steps))]
        for step in range(start, recipe.steps):
            ready = [future.result() for future in waiting.pop(0)]
            if step + 2 < recipe.steps:
                waiting.append(ask(step + 2))
            images, targets = zip(*ready)
            yield np.stack(images), np.stack(targets)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformationExtraArgs:
    """Return AdamW whose rate and first beta are set at each step."""

    @optax.inject_hyperparams
    def adamw(learning_rate, b1):
        return optax.chain(
            optax.clip_by_global_norm(recipe.clip) if recipe.clip else optax.identity(),
            optax.adamw(learning_rate, b1=b1, weight_decay=recipe.weight_decay),
        )

    return adamw(learning_rate=recipe.lr(0), b1=recipe.beta1(0))


def make_train_step(
    features: Callable[[Any, jax.Array], Any],
    loss: Loss,
    tx: optax.GradientTransformationExtraArgs,
) -> Callable[..., tuple[Any, jax.Array]]:
    """Return the jitted step (state, backbone, batch, scalars) -> (state, loss).

    Args:
      features: Function from the backbone's parameters and images to features.
      loss: The loss; it also returns the statistics that it changes.
      tx: The optimizer of `make_optimizer`.
    """

    def train_step(state, backbone, images, targets, scalars):
        taps = jax.lax.stop_gradient(features(backbone, images))
        params, statistics = state["params"], state["statistics"]
        (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(
            params, statistics, taps, targets, scalars["step"]
        )
        optimizer = state["optimizer"]
        optimizer.hyperparams["learning_rate"] = scalars["lr"]
        optimizer.hyperparams["b1"] = scalars["beta1"]
        updates, optimizer = tx.update(grads, optimizer, params)
        params = optax.apply_updates(params, updates)
        state = {"params": params, "statistics": changed, "optimizer": optimizer}
        return state, value

    return jax.jit(train_step, donate_argnums=0)


def fit(
    params: Mapping[str, jax.Array],
    statistics: Mapping[str, jax.Array],
    loss: Loss,
    features: Callable[[Any, jax.Array], Any],
    backbone: Any,
    sample: Callable[[int, np.random.Generator], Sample],
    length: int,
    recipe: Recipe,
    *,
    workers: int = 4,
    save: pathlib.Path | None = None,
    fingerprint: str = "",
    save_every: int = 500,
    after: Callable[[int, dict[str, jax.Array]], None] | None = None,
    every: int = 800,
) -> tuple[dict[str, jax.Array], list[float]]:
    """Train a head.

    Args:
      params: Parameters that are trained.
      statistics: Parameters that the forward pass changes.
      loss: The loss.
      features: Function from the backbone's parameters and images to features.
      backbone: Parameters of the backbone, which stay as they are.
      sample: Function that reads and augments an image by index.
      length: Number of images.
      recipe: How the head is trained.
      workers: Number of threads that prepare images.
      save: File that the run resumes from; None for none.
      fingerprint: Text of all that the run depends on; a file of another is refused.
      save_every: Steps between saves.
      after: Function of the number of steps done and all parameters of the head, valid
        during the call alone; None for none.
      every: Steps between calls of `after`, which is called at the end too.

    Returns:
      All parameters of the head, and the loss of every step since the start or resume.

    Raises:
      UserError: The loss is not finite, or `save` belongs to another run.
    """
    mesh = batch_placement.make_mesh(recipe.batch_size)
    tx = make_optimizer(recipe)
    params = dict(params)
    state = {
        "params": params,
        "statistics": dict(statistics),
        "optimizer": tx.init(params),
    }
    start = 0
    if save is not None and save.exists():
        state, start = _resume(save, state, fingerprint)
    # A copy: the step takes its state over.
    state = batch_placement.replicate(state, mesh)
    backbone = batch_placement.replicate(backbone, mesh)
    step_fn = make_train_step(features, loss, tx)
    losses: list[Any] = []
    bar = progress_bar.Bar(
        recipe.steps, what="training the head", unit="steps", done=start
    )
    source = batches(sample, length, recipe, start=start, workers=workers)
    with bar:
        for step, (images, targets) in enumerate(source, start=start):
            scalars = {
                "lr": np.float32(recipe.lr(step)),
                "beta1": np.float32(recipe.beta1(step)),
                "step": np.int32(step),
            }
            batch = batch_placement.split((images, targets), mesh)
            state, value = step_fn(state, backbone, *batch, scalars)
            losses.append(value)
            if len(losses) > 1:  # the step before is done: the device stays busy
                _finite(losses, len(losses) - 2, start)
            bar.update()
            done = step + 1
            if after is not None and (done % every == 0 or done == recipe.steps):
                after(done, state["params"] | state["statistics"])
            if save is not None and (done % save_every == 0 or done == recipe.steps):
                _save(save, state, done, fingerprint)
    for i in range(max(len(losses) - 1, 0), len(losses)):
        _finite(losses, i, start)
    return state["params"] | state["statistics"], losses


def _finite(losses: list[Any], i: int, start: int) -> float:
    """Turn the i-th loss into a float; raise UserError if it is not finite."""
    losses[i] = float(losses[i])
    if not np.isfinite(losses[i]):
        raise errors.UserError(
            f"the loss is {losses[i]} at step {start + i}: pass a smaller --lr",
            exit_code=errors.NON_FINITE,
        )
    return losses[i]


def _save(path: pathlib.Path, state: Any, step: int, fingerprint: str) -> None:
    leaves = jax.tree.leaves(jax.device_get(state))
    arrays = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}
    about = json.dumps({"step": step, "fingerprint": fingerprint})
    with files.open_new(path) as file:
        np.savez(file, about=np.array(about), **arrays)


def _resume(path: pathlib.Path, state: Any, fingerprint: str) -> tuple[Any, int]:
    leaves, structure = jax.tree.flatten(state)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            same = about["fingerprint"] == fingerprint
            found = [arrays[f"leaf_{i}"] for i in range(len(leaves))] if same else []
    except (OSError, ValueError, KeyError) as error:
        raise errors.UserError(
            f"cannot resume from {path} ({error}): delete it to start over"
        ) from error
    if not same:
        raise errors.UserError(
            f"{path} belongs to another run (model, data or settings differ): delete "
            "it, or pass another --out"
        )
    found = [jnp.asarray(x, leaf.dtype) for x, leaf in zip(found, leaves)]
    return jax.tree.unflatten(structure, found), about["step"]
