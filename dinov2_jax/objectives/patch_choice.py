"""The patches whose features a student learns from a frozen teacher.

In distillation the student sees all patches, so the patches of the loss need not be the
masked ones (paper, section 5). Shapes: G groups, B global crops a group, N patches of a
crop, M chosen patches a group.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.models import stochastic_depth

_STREAM = 2**20  # apart from stochastic depth, which folds in numbers of blocks


@dataclasses.dataclass(frozen=True)
class PatchChoice:
    """A choice of patches of the global crops, none of them masked.

    Attributes:
      patches: "all", or "masked": where the loader's masks are, as in DINOv3.
      share: For "all", share of each crop's patches, drawn anew in each step; above 0.
    """

    patches: str = "all"
    share: float = 1.0

    def __call__(
        self,
        batch: dict[str, jax.Array],
        key: jax.Array,
        micro_batch: stochastic_depth.MicroBatch | None = None,
    ) -> dict[str, Any]:
        """Return the batch with these patches and without masks.

        Args:
          batch: The batch, see `data/batch_builder.py`.
          key: PRNG key of the step.
          micro_batch: The groups of the batch that these are; None: all.
        """
        num_groups, num_crops, num_patches = batch["masks"].shape
        unmasked: dict[str, Any] = batch | {"masks": None}
        if self.patches == "masked":
            return unmasked
        count = math.ceil(self.share * num_patches)
        chosen = jnp.broadcast_to(jnp.arange(num_patches), (num_crops, num_patches))
        chosen = jnp.broadcast_to(chosen, (num_groups, num_crops, num_patches))
        if count < num_patches:
            key = jax.random.fold_in(key, _STREAM)
            groups = micro_batch.groups if micro_batch else jnp.arange(num_groups)
            keys = jax.vmap(lambda group: jax.random.fold_in(key, group))(groups)
            ranks = jax.vmap(
                lambda key: jax.random.uniform(key, (num_crops, num_patches))
            )(keys)
            chosen = jnp.sort(jnp.argsort(ranks, axis=-1)[..., :count], axis=-1)
        first = num_patches * jnp.arange(num_crops)[:, None]
        indices = (first + chosen).reshape(num_groups, -1)
        return unmasked | {
            "masked_indices": indices,
            "masked_weights": jnp.full(indices.shape, 1.0 / count),
        }
