"""Pixels in the place of a backbone's features, for any evaluation.

A patch's feature is its own pixels. The class token is the image shrunk to the size of
a patch, less its mean: cosines of raw pixels are all near 1 and follow brightness.

Shapes: B images, H x W pixels, C channels, h x w patches of P pixels, D = P * P * C.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.models import model_config, vision_transformer

# Extraction casts the matrices of the blocks, of which there are none.
PARAMS: Mapping[str, Any] = {"blocks": {"attn": {}, "mlp": {}}}


@dataclasses.dataclass(frozen=True)
class PixelBackbone:
    """A stand-in for a `VisionTransformer` whose features are pixels.

    Attributes:
      config: Sizes of the features; see `like`.
    """

    config: model_config.ModelConfig

    @classmethod
    def like(cls, config: model_config.ModelConfig) -> "PixelBackbone":
        """Return one with the patches and the number of blocks of a ViT."""
        width = config.patch_size**2 * config.in_chans
        return cls(config.replace(embed_dim=width, num_heads=1, num_register_tokens=0))

    def clone(self, **attributes: Any) -> "PixelBackbone":
        """Return itself: there is no dtype to change."""
        del attributes
        return self

    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        *,
        layers: Sequence[int] = (),
        method: str | None = None,
    ) -> Any:
        """Return the features of normalised images, the same after every block.

        Args:
          variables: Ignored.
          images: Normalised images, [B, H, W, C].
          layers: Blocks after which features are wanted too.
          method: "class_tokens" for only the class tokens.

        Returns:
          Class tokens [B, D], or `vision_transformer.Features`.
        """
        del variables
        batch, height, width, channels = images.shape
        side = self.config.patch_size
        small = jax.image.resize(images, (batch, side, side, channels), "linear")
        small -= small.mean(axis=(1, 2, 3), keepdims=True)
        cls = small.reshape(batch, -1)
        if method == "class_tokens":
            return cls
        rows, columns = height // side, width // side
        patches = images.reshape(batch, rows, side, columns, side, channels)
        patches = patches.swapaxes(2, 3).reshape(batch, rows, columns, -1)
        tokens = patches.reshape(batch, rows * columns, -1)
        found = vision_transformer.Features(
            cls=cls,
            registers=tokens[:, :0],
            patches=patches,
            prenorm=jnp.concatenate([cls[:, None], tokens], axis=1),
        )
        return dataclasses.replace(found, layers=dict.fromkeys(layers, found))
