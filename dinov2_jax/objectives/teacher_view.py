"""What a teacher with patches of another size sees of the student's global crops.

Both see the same augmented crops. The teacher's are resized, so that both have as many
patches; or, if it has another grid, its patch tokens are resized to the student's grid.
Shapes: G groups, B global crops a group, S pixels, M chosen patches, D the teacher's
width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dinov2_jax.models import network as network_lib


@dataclasses.dataclass(frozen=True)
class TeacherView:
    """Sizes at which the teacher sees the student's global crops.

    Attributes:
      size: Side of the crops that the teacher sees, px.
      grid: Side of the student's grid, in patches of a global crop.
    """

    size: int
    grid: int


def tokens(
    network: network_lib.Network,
    params: network_lib.Params,
    batch: dict[str, jax.Array],
    view: TeacherView | None,
) -> tuple[jax.Array, jax.Array]:
    """Compute a teacher's tokens of the unmasked global crops.

    Args:
      network: The teacher's network.
      params: Its parameters.
      batch: The batch; `masked_indices` [G, M] choose patches of the student's grid.
      view: Sizes at which the teacher sees the crops; None: the student's.

    Returns:
      Class tokens [G, B, D], and the tokens [G, M, D] of the chosen patches.
    """
    crops, indices = batch["global_crops"], batch["masked_indices"]
    if view is not None:
        crops = resize(network.normalize(crops), view.size)
    grid = crops.shape[2] // network.backbone.config.patch_size
    if view is None or grid == view.grid:
        (cls,), patches = network.tokens(params, [crops], [None], indices)
        return cls, patches
    num_groups, batch_size = crops.shape[:2]
    every = jnp.broadcast_to(
        jnp.arange(batch_size * grid**2), (num_groups, batch_size * grid**2)
    )
    (cls,), patches = network.tokens(params, [crops], [None], every)
    maps = patches.reshape(num_groups, batch_size, grid, grid, -1)
    maps = resize_tokens(maps, view.grid).reshape(num_groups, -1, maps.shape[-1])
    return cls, jnp.take_along_axis(maps, indices[..., None], axis=1)


def resize(crops: jax.Array, size: int) -> jax.Array:
    """Resize normalised crops [G, B, S, S, C] to `size` px, bicubic and antialiased."""
    if crops.shape[2] == size:
        return crops
    shape = (*crops.shape[:2], size, size, crops.shape[-1])
    return jax.image.resize(crops, shape, "cubic")


def resize_tokens(maps: jax.Array, grid: int) -> jax.Array:
    """Resize maps of tokens [G, B, n, n, D] bilinearly to [G, B, grid, grid, D]."""
    shape = (*maps.shape[:2], grid, grid, maps.shape[-1])
    resized = jax.image.resize(maps.astype(jnp.float32), shape, "linear")
    return resized.astype(maps.dtype)
