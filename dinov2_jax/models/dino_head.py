"""Projection head to prototypes. Mirrors the reference's `layers/dino_head.py`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.models import layers


class DINOHead(nn.Module):
    """MLP to a bottleneck, L2 normalisation, weight-normed linear to K prototypes.

    Attributes:
      num_prototypes: Number of prototypes, K; 0: the head ends at the bottleneck.
      hidden_dim: Width of the MLP's hidden layers.
      bottleneck_dim: Width of the bottleneck, C.
      num_layers: Number of the MLP's linear layers; 1 is a single one named `mlp`.
      dtype: Dtype of the matmuls; norms and the returned logits are float32.
    """

    num_prototypes: int
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    num_layers: int = 3
    dtype: Any = jnp.float32

    def setup(self):
        """Declare the submodules under the reference's names."""
        if self.num_layers == 1:
            self.mlp = _dense(self.bottleneck_dim, self.dtype)
        else:
            self.mlp = _Mlp(
                self.hidden_dim, self.bottleneck_dim, self.num_layers, self.dtype
            )
        if self.num_prototypes:
            self.last_layer = _WeightNormLinear(
                self.num_prototypes, self.bottleneck_dim
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute float32 logits [..., K] of tokens [..., D].

        Without prototypes, the bottleneck's features [..., C] instead.
        """
        if not self.num_prototypes:
            return self.bottleneck(x).astype(jnp.float32)
        return jnp.einsum(
            "...c,kc->...k",
            self.bottleneck(x),
            self.prototypes(),
            preferred_element_type=jnp.float32,
        )

    def bottleneck(self, x: jax.Array) -> jax.Array:
        """Map tokens [..., D] to unit-length features [..., C] in `dtype`."""
        x = self.mlp(x).astype(jnp.float32)
        # x / max(|x|, 1e-12), with a finite gradient at 0.
        x = x * jax.lax.rsqrt(
            jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24)
        )
        return x.astype(self.dtype)

    def prototypes(self) -> jax.Array:
        """Return the prototypes [K, C] in `dtype`, whole on every device."""
        return sharding.gather(self.last_layer().astype(self.dtype))


def _dense(features: int, dtype: Any, name: str | None = None) -> nn.Dense:
    return layers.dense(
        features, True, dtype, name, promote_dtype=layers.cast_and_gather
    )


class _Mlp(nn.Module):
    """Linear layers with GELUs between; names 0, 2, 4 count the GELUs, as in torch."""

    hidden_dim: int
    out_dim: int
    num_layers: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.num_layers):
            last = i == self.num_layers - 1
            features = self.out_dim if last else self.hidden_dim
            x = _dense(features, self.dtype, str(2 * i))(x)
            x = x if last else layers.gelu(x)
        return x


class _WeightNormLinear(nn.Module):
    """W = g * v / |v| by prototype, g trainable; torch's layout and initialisation."""

    num_prototypes: int
    dim: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """Return the normalised weight, float32 [K, C]."""
        g = self.param("weight_g", nn.initializers.ones, (self.num_prototypes, 1))
        v = self.param(
            "weight_v",
            layers.torch_default_init(self.dim),
            (self.num_prototypes, self.dim),
        )
        return weight_norm(g, v)


@jax.custom_vjp
def weight_norm(g: jax.Array, v: jax.Array) -> jax.Array:
    """Compute g * v / |v| by rows: [K, 1], [K, C] -> [K, C].

    Autodiff's backward pass would go over [K, C] ten times; this one does so twice.
    """
    return (g * _inverse_norm(v)) * v


def _weight_norm_forward(g, v):
    return weight_norm(g, v), (g, v)


def _weight_norm_backward(saved, grad):
    g, v = saved
    inverse = _inverse_norm(v)
    d_g = jnp.sum(grad * v, axis=-1, keepdims=True) * inverse
    return d_g, (g * inverse) * (grad - v * (d_g * inverse))


weight_norm.defvjp(_weight_norm_forward, _weight_norm_backward)


def _inverse_norm(v):
    return jax.lax.rsqrt(jnp.sum(v * v, axis=-1, keepdims=True))


def make_dino_head(section: Any, dtype: Any, *, prototypes: bool = True) -> DINOHead:
    """Return the head that a section, `config.dino` or `config.ibot`, describes.

    Args:
      section: The section of the config.
      dtype: Dtype of the matmuls.
      prototypes: Whether the head has prototypes; False ends it at the bottleneck.
    """
    return DINOHead(
        num_prototypes=section.head_n_prototypes if prototypes else 0,
        hidden_dim=section.head_hidden_dim,
        bottleneck_dim=section.head_bottleneck_dim,
        num_layers=section.head_nlayers,
        dtype=dtype,
    )
