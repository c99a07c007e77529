"""Photographs of any shape with a backbone's features and attention.

Shapes: H x W pixels, h x w patches, D width, A heads, R registers, T = 1 + R + h*w
tokens.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from PIL import Image

from dinov2_jax import errors, pretrained
from dinov2_jax.data import preprocessing


@dataclasses.dataclass(frozen=True)
class View:
    """A photograph with the features and attention of one block.

    Attributes:
      name: Name of the photograph in captions.
      pixels: uint8 [H, W, 3], as the backbone saw it.
      patches: float32 [h, w, D], after the block and the last LayerNorm.
      norms: float32 [T], lengths of the tokens after the block, before the LayerNorm.
      attention: float32 [A, 1 + R, T], of the class token and the registers in the
        block; None if not requested.
    """

    name: str
    pixels: np.ndarray
    patches: np.ndarray
    norms: np.ndarray
    attention: np.ndarray | None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, (h, w)."""
        return self.patches.shape[:2]


def make_view(
    model: pretrained.Model,
    photograph: np.ndarray,
    name: str,
    *,
    size: int,
    block: int = -1,
    attention: bool = True,
) -> View:
    """Run a backbone on a photograph; compiled once for each shape.

    Args:
      model: Model from `dinov2_jax.load`.
      photograph: uint8 [H, W, 3].
      name: Name of the photograph in captions.
      size: Wanted longer side, px; see `preprocessing.size_in_patches`.
      block: Number of the block whose output and attention to take; -1 is the last.
      attention: Whether to return attention.

    Raises:
      UserError: The size is below one patch, there is no such block, or the backbone
        is not for RGB images.
    """
    config = model.module.config
    if config.in_chans != 3:
        raise errors.UserError(
            f"the model takes {config.in_chans} channels: only RGB models, with 3 "
            "channels, can be drawn"
        )
    if size < config.patch_size:
        raise errors.UserError(
            f"--size={size} is smaller than one patch of this model, "
            f"{config.patch_size} px: try 518"
        )
    if not -config.depth <= block < config.depth:
        raise errors.UserError(
            f"there is no block {block}: this model has 0 to {config.depth - 1}, or -1 "
            "for the last"
        )
    height, width = photograph.shape[:2]
    target_size = preprocessing.size_in_patches(width, height, size, config.patch_size)
    pixels = np.asarray(
        Image.fromarray(photograph).resize(target_size, Image.Resampling.BICUBIC)
    )
    features = model(
        model.preprocessing.normalize(pixels)[None],
        layers=[block],
        attention=[block] if attention else [],
        # All T rows of a large image are gigabytes.
        attention_queries=range(1 + config.num_register_tokens),
    )
    out = features.layers[block]
    rows = np.asarray(features.attention[block][0]) if attention else None
    return View(
        name=name,
        pixels=pixels,
        patches=np.asarray(out.patches[0], np.float32),
        norms=np.asarray(jnp.linalg.norm(out.prenorm[0].astype(jnp.float32), axis=-1)),
        attention=rows,
    )
