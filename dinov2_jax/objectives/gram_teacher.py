"""The Gram teacher: a backbone that hardly changes, whose patches anchor the student's.

From the DINOv3 paper (arXiv 2508.10104), sections 4.2 and 4.3. It is an earlier EMA of
the student, or comes from a file, and is replaced by the current EMA at a few steps
that depend on the number of the step alone. Its parameters are in the state, under
"gram" in the centres, so that runs resume to the bit. Shapes: G groups, b images a
group, S pixels, N = h * w patches of the student's global crops, D width.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.models import network, pos_embed

KEY = "gram"  # of its parameters in the centres and of its features in the targets


@flax.struct.dataclass
class Target:
    """What the student's patches are compared with.

    Attributes:
      patches: The Gram teacher's patches of the global crops, [G, 2b, N, D].
      weights: Weight of the loss for each group, float32 [G]; 0 before its first step.
    """

    patches: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True)
class GramTeacher:
    """Pure functions of the Gram teacher's parameters, a batch and a step.

    Attributes:
      network: The network whose backbone it has; parameters are kept in the dtype of
        its matmuls.
      loss_weight: Weight of the loss.
      start: Number of steps done before the loss is used.
      refresh_every: Steps from `start` to the first refresh, and from each to the next.
      refreshes: Number of refreshes.
      from_ema: Whether the EMA at `start` is the first Gram teacher.
      undistorted: Whether it sees crops without changes of colour and blur.
    """

    network: network.Network
    loss_weight: float
    start: int = 0
    refresh_every: int = 10_000
    refreshes: int = 3
    from_ema: bool = True
    undistorted: bool = True

    def init(self, params: network.Params) -> Any:
        """Return a copy of a network's backbone as the Gram teacher's parameters."""
        dtype = self.network.backbone.dtype
        return jax.tree.map(
            lambda x: jnp.copy(x.astype(dtype)),
            params["backbone"],  # no alias: the state is donated
        )

    def is_refreshed(self, step: jax.Array | int) -> jax.Array | bool:
        """Return whether the EMA replaces the Gram teacher before a step."""
        number, left = jnp.divmod(step - self.start, self.refresh_every)
        first = 0 if self.from_ema else 1
        return (left == 0) & (first <= number) & (number <= self.refreshes)

    def refresh(
        self, centers: dict[str, Any], ema: network.Params, step: jax.Array
    ) -> dict[str, Any]:
        """Replace the Gram teacher in the centres by the EMA if it is time.

        Args:
          centers: The centres, with the Gram teacher's parameters.
          ema: The EMA of the student's parameters.
          step: Number of steps done.
        """
        due = self.is_refreshed(step)
        params = jax.tree.map(
            lambda old, new: jnp.where(due, new.astype(old.dtype), old),
            centers[KEY],
            ema["backbone"],
        )
        return {**centers, KEY: params}

    def target(
        self, centers: dict[str, Any], batch: dict[str, jax.Array], step: jax.Array
    ) -> Target:
        """Compute the patches of the unmasked global crops.

        Nothing is computed before `start`.

        Args:
          centers: The centres, with the Gram teacher's parameters.
          batch: The batch; crops of `gram_crops` if it is undistorted, which may be
            larger than the student's, else of `global_crops`.
          step: Number of steps done.
        """
        crops = batch["gram_crops" if self.undistorted else "global_crops"]
        side = math.isqrt(batch["masks"].shape[2])

        def patches():
            # Forms of the blocks are computed from float32, as the EMA's are.
            params = jax.tree.map(lambda x: x.astype(jnp.float32), centers[KEY])
            return self._patches(params, crops, side)

        weights = jnp.full(len(crops), self.loss_weight, jnp.float32)
        if not self.start:
            return Target(patches(), weights)
        started = step >= self.start
        shape = jax.eval_shape(patches)
        return Target(
            jax.lax.cond(started, patches, lambda: jnp.zeros(shape.shape, shape.dtype)),
            weights * started,
        )

    def _patches(self, params, crops, side):
        groups, count, height, width = crops.shape[:4]
        patch = self.network.backbone.config.patch_size
        grid = height // patch, width // patch
        indices = every_patch(groups, count * grid[0] * grid[1])
        _, x = self.network.tokens({"backbone": params}, [crops], [None], indices)
        x = x.reshape(groups, count, *grid, x.shape[-1])
        if grid != (side, side):
            x = shrink(x, side)
        return x.reshape(groups, count, side * side, x.shape[-1])


def every_patch(groups: int, count: int) -> jax.Array:
    """Return the indices of all patches of a group, int32 [G, count]."""
    return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (groups, count))


def shrink(patches: jax.Array, side: int) -> jax.Array:
    """Resample a map of patches bicubically, without antialiasing, as torch does.

    Args:
      patches: Patch tokens, [G, B, h, w, D].
      side: Rows and columns of the result.

    Returns:
      float32 [G, B, side, side, D].
    """
    rows, columns = (
        pos_embed.resize_matrix(size, side).astype(np.float32)
        for size in patches.shape[2:4]
    )
    x = patches.astype(jnp.float32)
    return jnp.einsum("ih,jw,gbhwd->gbijd", rows, columns, x, precision="highest")


def make_gram_teacher(config: Any, student: network.Network) -> GramTeacher | None:
    """Return the Gram teacher that a config describes; None if its loss is off.

    Args:
      config: A config, see `configs/default.py`.
      student: The student's network.
    """
    gram = config.gram
    if not gram.loss_weight:
        return None
    return GramTeacher(
        network=student,
        loss_weight=gram.loss_weight,
        start=gram.start,
        refresh_every=gram.refresh_every,
        refreshes=gram.refreshes,
        from_ema=not gram.source,
        undistorted=gram.undistorted,
    )
