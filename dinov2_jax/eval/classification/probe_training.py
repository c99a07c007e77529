"""Training of linear probes on augmented images or on cached features."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, feature_extractor, progress_bar, sharding
from dinov2_jax.data import preprocessing
from dinov2_jax.eval import features as features_lib
from dinov2_jax.eval import saved_state
from dinov2_jax.eval.classification import linear_probe
from dinov2_jax.models import network

Batches = Callable[[int], Generator[tuple[np.ndarray, np.ndarray], None, None]]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The loop that trains all classifiers of a probe.

    Attributes:
      probe: The classifiers.
      backbone: The frozen model.
      prepare: Transform of the images; gives mean and deviation.
      batch_size: Images in a step, over all devices.
      seed: Seed of the initial weights.
      path: The file in which the state is kept, so that a killed run resumes.
      settings: What the run computes; JSON values. A state of others is refused.
    """

    probe: linear_probe.Probe
    backbone: features_lib.Backbone
    prepare: preprocessing.Preprocessing
    batch_size: int
    seed: int
    path: pathlib.Path
    settings: dict[str, Any]

    def train(
        self,
        batches: Batches,
        *,
        images: bool = True,
        every: int,
        after: Callable[[int, linear_probe.ProbeState], None],
    ) -> linear_probe.ProbeState:
        """Train from the beginning, or from the saved state, to the end.

        Args:
          batches: Function from the first step to the batches up to the last: uint8
            images [B, S, S, 3] or features [B, n + 1, D], and labels [B].
          images: Whether the batches hold images.
          every: Steps between calls of `after` and saves.
          after: Function of the number of steps done and the state.

        Raises:
          UserError: The saved state belongs to another run, or cannot be written.
        """
        start, state = self._restore()
        total = self.probe.total_steps
        count = self.batch_size
        devices = jax.local_devices()
        if not images and devices[0].platform == "cpu":
            # Each updates all classifiers, in one memory: two took three times as long.
            devices = devices[:1]
        devices = devices[: math.gcd(count, len(devices))]
        mesh = sharding.make_mesh(devices=devices)
        everywhere = sharding.replicated(mesh)
        state = jax.device_put(state, everywhere)
        params = jax.device_put(self.backbone.model.params, everywhere)
        progress = progress_bar.Bar(total * count, what="training", done=start * count)
        previous = None
        with (
            contextlib.closing(progress),
            contextlib.closing(batches(start)) as iterator,
            jax.set_mesh(mesh),
        ):
            for step, batch in enumerate(iterator, start):
                batch = jax.device_put(batch, sharding.batch_sharding(mesh))
                factor = np.float32(self.probe.lr_factor(step))
                state, losses = self._step(params, state, *batch, factor)
                # The step before is done, so few wait at a time. From the 33rd on they
                # hold the threads with which CPU devices add up gradients, for ever.
                jax.block_until_ready(previous)
                previous = losses
                done = step + 1
                progress.update_to(done * count)
                if done % every == 0 or done == total:
                    self._check(losses, done)
                    self._save(done, state)
                    after(done, state)
        return state

    @functools.cached_property
    def _step(self):
        module = self.backbone.model.module.clone(dtype=jnp.dtype(self.backbone.dtype))
        precision = "highest" if self.backbone.dtype == "float32" else "default"

        @functools.partial(jax.jit, donate_argnums=1)
        def step(params, state, x, labels, lr_factor):
            if x.dtype == jnp.uint8:
                with jax.default_matmul_precision(precision):
                    cls, patch_mean = feature_extractor.last_blocks(
                        module,
                        params,
                        network.normalize(x, self.prepare.mean, self.prepare.std),
                        blocks=max(self.probe.blocks),
                    )
            else:
                cls, patch_mean = x[:, :-1], x[:, -1]
            return self.probe.step(state, cls, patch_mean, labels, lr_factor)

        return step

    def _check(self, losses: jax.Array, done: int) -> None:
        """Refuse to go on when every classifier has diverged."""
        if not np.isfinite(np.asarray(losses)).any():
            raise errors.UserError(
                f"no classifier has a finite loss at step {done}: are the "
                "weights right, and --dtype=float32?",
                exit_code=errors.NON_FINITE,
            )

    def _restore(self) -> tuple[int, linear_probe.ProbeState]:
        """Return the number of steps done and the state after them."""
        width = self.backbone.model.module.config.embed_dim
        state = self.probe.init(jax.random.key(self.seed), width)
        return saved_state.restore(
            self.path, state, settings=self.settings, what="probe"
        )

    def _save(self, done: int, state: linear_probe.ProbeState) -> None:
        saved_state.save(self.path, state, done=done, settings=self.settings)
