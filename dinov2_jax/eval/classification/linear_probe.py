"""Linear classifiers on frozen features, many learning rates trained at once.

Mirrors the reference's `eval/linear.py`: one classifier for each input (class tokens of
the last n blocks, with or without the mean patch token) and learning rate, SGD with
momentum, the sum of their losses, a cosine to 0. Here all classifiers of an input are
one matrix, so a step is a few large products.

Shapes: B images, D width, W inputs of a classifier, R learning rates, C classes.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import schedules
from dinov2_jax.eval import reference_settings

MOMENTUM = 0.9
_INITIAL_DEVIATION = 0.01


@dataclasses.dataclass(frozen=True)
class Head:
    """One classifier of the grid.

    Attributes:
      blocks: Number of last blocks whose class tokens it sees.
      average_pool: Whether it sees the mean patch token of the last block too.
      lr: Its learning rate at the first step.
    """

    blocks: int
    average_pool: bool
    lr: float

    @property
    def name(self) -> str:
        """Name in tables."""
        pooled = " + mean patch" if self.average_pool else ""
        return f"{self.blocks} class token(s){pooled}, lr {self.lr:g}"


def learning_rates(grid: str, batch_size: int) -> tuple[float, ...]:
    """Return the grid's learning rates at the first step.

    Args:
      grid: Name of the grid, a key of `reference_settings.PROBE_GRIDS`.
      batch_size: Images in a step, over all devices.
    """
    scale = batch_size / 256 if grid == "code" else 1.0
    return tuple(lr * scale for lr in reference_settings.PROBE_GRIDS[grid])


def heads(
    rates: Sequence[float],
    *,
    blocks: Sequence[int] = reference_settings.PROBE_BLOCKS,
    average_pool: Sequence[bool] = (False, True),
) -> list[Head]:
    """Return all classifiers, in the reference's order.

    Args:
      rates: Learning rates at the first step.
      blocks: Numbers of last blocks.
      average_pool: Whether the mean patch token is added.
    """
    return [Head(n, pool, lr) for n in blocks for pool in average_pool for lr in rates]


def head_input(
    cls: jax.Array, patch_mean: jax.Array, *, blocks: int, average_pool: bool
) -> jax.Array:
    """Return what a classifier sees, [B, W].

    Args:
      cls: Class tokens of the last blocks, the oldest first, [B, n, D].
      patch_mean: Mean patch token of the last block, [B, D].
      blocks: Number of last blocks to take.
      average_pool: Whether to add `patch_mean`.
    """
    chosen = cls[:, cls.shape[1] - blocks :].reshape(len(cls), -1)
    return jnp.concatenate([chosen, patch_mean], axis=1) if average_pool else chosen


@flax.struct.dataclass
class ProbeState:
    """Weights and momenta of all classifiers, grouped by their input.

    Attributes:
      kernels: One array for each input, float32 [W, R, C].
      biases: One array for each input, float32 [R, C].
      momenta: (kernels, biases) of the momentum.
    """

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    momenta: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True)
class Probe:
    """All classifiers of a grid and the rule that trains them.

    Attributes:
      rates: Learning rates at the first step, R of them.
      num_classes: Number of classes C.
      total_steps: Number of steps until the learning rate is 0.
      blocks: Numbers of last blocks.
      average_pool: Whether the mean patch token is added.
    """

    rates: tuple[float, ...]
    num_classes: int
    total_steps: int
    blocks: tuple[int, ...] = reference_settings.PROBE_BLOCKS
    average_pool: tuple[bool, ...] = (False, True)

    @property
    def heads(self) -> list[Head]:
        """All classifiers, in the order of the last axis of scores and losses."""
        return heads(self.rates, blocks=self.blocks, average_pool=self.average_pool)

    @property
    def inputs(self) -> list[tuple[int, bool]]:
        """(blocks, average_pool) of each group of classifiers."""
        return [(n, pool) for n in self.blocks for pool in self.average_pool]

    def init(self, key: jax.Array, width: int) -> ProbeState:
        """Draw initial weights, normal with deviation 0.01 and biases 0.

        Args:
          key: PRNG key.
          width: Width of the backbone D.
        """
        kernels = tuple(
            _INITIAL_DEVIATION
            * jax.random.normal(
                key_of_input,
                ((n + pool) * width, len(self.rates), self.num_classes),
            )
            for key_of_input, (n, pool) in zip(
                jax.random.split(key, len(self.inputs)), self.inputs
            )
        )
        biases = tuple(
            jnp.zeros((len(self.rates), self.num_classes)) for _ in self.inputs
        )
        zeros = jax.tree.map(jnp.zeros_like, (kernels, biases))
        return ProbeState(kernels, biases, zeros)

    def lr_factor(self, step: int) -> float:
        """Return the share of the first learning rate at a step, counted from 0."""
        return schedules.Cosine(1.0, 0.0, self.total_steps)(step)

    def scores(
        self, kernels: Any, biases: Any, cls: jax.Array, patch_mean: jax.Array
    ) -> jax.Array:
        """Compute the classifiers' scores, float32 [B, heads, C].

        Args:
          kernels: As in `ProbeState`.
          biases: As in `ProbeState`.
          cls: Class tokens of the last blocks, the oldest first, [B, n, D].
          patch_mean: Mean patch token of the last block, [B, D].
        """
        groups = []
        for (n, pool), kernel, bias in zip(self.inputs, kernels, biases):
            x = head_input(cls, patch_mean, blocks=n, average_pool=pool)
            flat = kernel.reshape(kernel.shape[0], -1)  # one product for all rates
            y = jnp.matmul(x, flat, precision=jax.lax.Precision.HIGHEST)
            groups.append(y.reshape(len(x), *bias.shape) + bias)
        return jnp.concatenate(groups, axis=1)

    def step(
        self,
        state: ProbeState,
        cls: jax.Array,
        patch_mean: jax.Array,
        labels: jax.Array,
        lr_factor: jax.Array,
    ) -> tuple[ProbeState, jax.Array]:
        """Train all classifiers on a batch.

        Args:
          state: Weights and momenta.
          cls: Class tokens of the last blocks, the oldest first, [B, n, D].
          patch_mean: Mean patch token of the last block, [B, D].
          labels: Labels, int [B].
          lr_factor: Share of the first learning rates, from `lr_factor`.

        Returns:
          The next state, and each classifier's mean loss before the step, [heads].
        """

        def total_loss(weights):
            scores = self.scores(*weights, cls, patch_mean)
            losses = cross_entropy(scores, labels[:, None]).mean(axis=0)
            return losses.sum(), losses

        weights = state.kernels, state.biases
        grads, losses = jax.grad(total_loss, has_aux=True)(weights)
        momenta = jax.tree.map(lambda m, g: MOMENTUM * m + g, state.momenta, grads)
        lr = lr_factor * jnp.float32(self.rates)[:, None]  # [R, 1], beside classes
        kernels, biases = jax.tree.map(lambda w, m: w - lr * m, weights, momenta)
        return ProbeState(kernels, biases, momenta), losses


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Return -log softmax(scores)[label], without the class axis.

    Args:
      scores: Scores, [..., C].
      labels: Labels, int, of a shape that broadcasts to that of the result.
    """
    shape = (*scores.shape[:-1], 1)
    labels = jnp.broadcast_to(labels[..., None], shape)
    picked = jnp.take_along_axis(scores, labels, axis=-1)[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - picked


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    probe: Probe,
    state: ProbeState,
    cls: jax.Array,
    patch_mean: jax.Array,
    labels: jax.Array,
    lr_factor: jax.Array,
) -> tuple[ProbeState, jax.Array]:
    """Run `Probe.step`, compiled; the old state's memory is reused."""
    return probe.step(state, cls, patch_mean, labels, lr_factor)


def best(accuracies: Sequence[float]) -> int:
    """Return the index of the highest accuracy; of equal ones the first."""
    return int(np.argmax(accuracies))
