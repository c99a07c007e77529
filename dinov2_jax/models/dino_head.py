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
      num_prototypes: K.
      num_layers: Linear layers of the MLP; 1 is a single linear named `mlp`.
      dtype: Of the matmuls; norms and the returned logits are float32.
    """

    num_prototypes: int
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    num_layers: int = 3
    dtype: Any = jnp.float32

    def setup(self):
        """Declares the parts under the reference's names."""
        if self.num_layers == 1:
            self.mlp = _dense(self.bottleneck_dim, self.dtype)
        else:
            self.mlp = _Mlp(
                self.hidden_dim, self.bottleneck_dim, self.num_layers, self.dtype
            )
        self.last_layer = _WeightNormLinear(self.num_prototypes, self.bottleneck_dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 logits [..., K]."""
        return jnp.einsum(
            "...c,kc->...k",
            self.bottleneck(x),
            self.prototypes(),
            preferred_element_type=jnp.float32,
        )

    def bottleneck(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., C] of unit length, in `dtype`."""
        x = self.mlp(x).astype(jnp.float32)
        # x / max(|x|, 1e-12), with a finite gradient at 0.
        x = x * jax.lax.rsqrt(
            jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24)
        )
        return x.astype(self.dtype)

    def prototypes(self) -> jax.Array:
        """[K, C] in `dtype`: what the bottleneck is multiplied with."""
        return sharding.gather(self.last_layer().astype(self.dtype))


def _dense(features: int, dtype: Any, name: str | None = None) -> nn.Dense:
    return layers.dense(
        features, True, dtype, name, promote_dtype=layers.cast_and_gather
    )


class _Mlp(nn.Module):
    """Linears with GELU between; names 0, 2, 4 count the GELUs, as in torch."""

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
    """W = g * v / |v| per prototype, g trainable; torch's layout and initialisation."""

    num_prototypes: int
    dim: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """float32 [K, C]."""
        g = self.param("weight_g", nn.initializers.ones, (self.num_prototypes, 1))
        v = self.param(
            "weight_v",
            layers.torch_default_init(self.dim),
            (self.num_prototypes, self.dim),
        )
        return weight_norm(g, v)


@jax.custom_vjp
def weight_norm(g: jax.Array, v: jax.Array) -> jax.Array:
    """g * v / |v| by rows: [K, 1], [K, C] -> [K, C].

    What autodiff makes of it goes ten times over [K, C]; this backward pass twice.
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


def make_dino_head(section: Any, dtype: Any) -> DINOHead:
    """The head that `config.dino` or `config.ibot` describes."""
    return DINOHead(
        num_prototypes=section.head_n_prototypes,
        hidden_dim=section.head_hidden_dim,
        bottleneck_dim=section.head_bottleneck_dim,
        num_layers=section.head_nlayers,
        dtype=dtype,
    )
