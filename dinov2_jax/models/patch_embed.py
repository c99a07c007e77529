"""Patch embedding. Mirrors the reference's `layers/patch_embed.py`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinov2_jax.models import layers


class PatchEmbed(nn.Module):
    """Convolution with kernel = stride = patch size, as reshape and matmul."""

    patch_size: int
    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Embed images [..., H, W, C] as tokens [..., h*w, D]."""
        *lead, height, width, chans = images.shape
        p = self.patch_size
        x = images.astype(self.dtype)
        x = x.reshape(*lead, height // p, p, width // p, p, chans)
        x = jnp.moveaxis(x, -4, -3)  # [..., h, w, p, p, C]
        x = x.reshape(*lead, (height // p) * (width // p), p * p * chans)
        init = layers.torch_default_init(fan_in=p * p * chans)
        proj = layers.dense(
            self.embed_dim,
            True,
            self.dtype,
            "proj",
            kernel_init=init,
            bias_init=init,
            promote_dtype=layers.cast_and_gather,
        )
        return proj(x)
