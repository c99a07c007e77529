"""The transformer block and its parts. Mirrors the reference's `layers/`.

Shapes: G groups, T tokens in a group's flat stream, B images of N tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinov2_jax import sharding
from dinov2_jax.kernels import attention as attention_kernel
from dinov2_jax.kernels import layer_norm
from dinov2_jax.models import model_config, stochastic_depth

Sequences = Sequence[tuple[int, int]]

# torch's trunc_normal_(std=0.02) truncates at +-2, which is 100 sigma: a plain normal.
linear_init = nn.initializers.normal(0.02)


def torch_default_init(fan_in: int) -> nn.initializers.Initializer:
    """Return torch's default initialiser for layers, uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


def gelu(x: jax.Array) -> jax.Array:
    """Compute the exact GELU as torch does; keep only `x` for the backward pass.

    `jax.nn.gelu(approximate=False)` uses erfc, which is slower and no more exact here.
    """
    return jax.checkpoint(
        lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5)), prevent_cse=False
    )(x)


def dense(
    features: int, use_bias: bool, dtype: Any, name: str | None = None, **settings: Any
) -> nn.Dense:
    """Make a linear layer initialised as the reference's; `settings` are flax's."""
    settings = {"kernel_init": linear_init} | settings
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, name=name, **settings)


def cast_and_gather(x, *weights, dtype, **_):
    """Cast inputs and gather weights; the `promote_dtype` of layers kept sharded."""
    weights = [None if w is None else w.astype(dtype) for w in weights]
    return x.astype(dtype), *sharding.gather(weights)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, with flax's parameter names."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise [..., D] to `dtype`."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return layer_norm.layer_norm(x, scale, bias).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention on the flat stream.

    Attributes:
      config: The architecture.
      kernel: Implementation, see `kernels.attention`.
      dtype: Dtype of the matmuls.
    """

    config: model_config.ModelConfig
    kernel: str = "auto"
    dtype: Any = jnp.float32

    def setup(self):
        """Declare the linear layers under the reference's names."""
        c = self.config
        self.qkv = dense(3 * c.embed_dim, c.qkv_bias, self.dtype)
        self.proj = dense(c.embed_dim, c.proj_bias, self.dtype)

    def __call__(self, x: jax.Array, sequences: Sequences) -> jax.Array:
        """Map tokens [G, T, D] to [G, T, D]; `sequences` as in `Block`."""
        x = attention_kernel.attention(
            self.qkv(x),
            sequences=sequences,
            num_heads=self.config.num_heads,
            implementation=self.kernel,
        )
        return self.proj(checkpoint_name(x, "attention"))

    def maps(
        self, x: jax.Array, sequences: Sequences, queries: Sequence[int] | None
    ) -> list[jax.Array]:
        """Return the maps of `kernels.attention.attention_maps`."""
        return attention_kernel.attention_maps(
            self.qkv(x),
            sequences=sequences,
            num_heads=self.config.num_heads,
            queries=queries,
        )

    def first_token(self, x: jax.Array) -> jax.Array:
        """Compute only the first token's output, [B, N, D] -> [B, 1, D]."""
        heads = self.config.num_heads
        return self.proj(attention_kernel.first_query(self.qkv(x), num_heads=heads))


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear.

    Attributes:
      config: The architecture.
      dtype: Dtype of the matmuls.
    """

    config: model_config.ModelConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Declare the linear layers under the reference's names."""
        c = self.config
        self.fc1 = dense(c.hidden_dim, c.ffn_bias, self.dtype)
        self.fc2 = dense(c.embed_dim, c.ffn_bias, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., D]."""
        return self.fc2(gelu(checkpoint_name(self.fc1(x), "ffn_hidden")))


class SwiGLU(nn.Module):
    """silu(x1) * x2 with (x1, x2) from one packed projection.

    Attributes:
      config: The architecture.
      dtype: Dtype of the matmuls.
    """

    config: model_config.ModelConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Declare the linear layers under the reference's names."""
        c = self.config
        self.w12 = dense(2 * c.gated_dim, c.ffn_bias, self.dtype)
        self.w3 = dense(c.embed_dim, c.ffn_bias, self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., D]."""
        hidden = checkpoint_name(self.w12(x), "ffn_hidden")
        gate, value = jnp.split(hidden, 2, axis=-1)
        return self.w3(nn.silu(gate) * value)


class LayerScale(nn.Module):
    """One learned factor for each channel."""

    init_value: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale tokens [..., D]."""
        init = nn.initializers.constant(self.init_value)
        return x * self.param("gamma", init, x.shape[-1:]).astype(x.dtype)


# Kind of FFN -> its module.
FFN_LAYERS = {"mlp": Mlp, "swiglufused": SwiGLU}


class Block(nn.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))), on a subset in training.

    `models.folded_block` has the same function with norms and LayerScale folded into
    the weights.

    Attributes:
      config: The architecture.
      kernel: Implementation of the attention, see `kernels.attention`.
      dtype: Dtype of the matmuls.
    """

    config: model_config.ModelConfig
    kernel: str = "auto"
    dtype: Any = jnp.float32

    def setup(self):
        """Declare the submodules under the reference's names."""
        c = self.config
        self.norm1 = LayerNorm(self.dtype)
        self.attn = Attention(c, self.kernel, self.dtype)
        self.norm2 = LayerNorm(self.dtype)
        self.mlp = FFN_LAYERS[c.ffn_layer](c, self.dtype)
        if c.layerscale:
            self.ls1 = LayerScale(c.layerscale)
            self.ls2 = LayerScale(c.layerscale)
        else:
            self.ls1 = self.ls2 = lambda residual: residual

    def __call__(
        self,
        x: jax.Array,
        sequences: Sequences,
        kept: stochastic_depth.Kept | None = None,
    ) -> jax.Array:
        """Apply the block to the flat stream.

        Args:
          x: Tokens, [G, T, D].
          sequences: (count, length) of each crop group in the stream.
          kept: Samples to compute in each crop group, [G, k] each, for the attention
            and for the FFN branch; None computes all. See `models.stochastic_depth`.

        Returns:
          Tokens, [G, T, D].
        """
        x = self.add_attention(x, sequences, kept and kept[0])

        def branch(tokens, *_):
            return self.ffn(tokens), None

        return stochastic_depth.add_residual(x, branch, sequences, kept and kept[1])

    def add_attention(
        self, x: jax.Array, sequences: Sequences, kept: tuple[jax.Array, ...] | None
    ) -> jax.Array:
        """Apply the first half of the block, [G, T, D] -> [G, T, D]."""

        def branch(tokens, sequences, _):
            return self.ls1(self.attn(self.norm1(tokens), sequences)), None

        return stochastic_depth.add_residual(x, branch, sequences, kept)

    def ffn(self, tokens: jax.Array) -> jax.Array:
        """Compute what the second half adds to tokens [..., D], each on its own."""
        return self.ls2(self.mlp(self.norm2(tokens)))

    def first_token(self, x: jax.Array) -> jax.Array:
        """Compute only the first token of each sequence, [B, N, D] -> [B, 1, D]."""
        x = x[:, :1] + self.ls1(self.attn.first_token(self.norm1(x)))
        return x + self.ffn(x)

    def attention_maps(
        self,
        x: jax.Array,
        sequences: Sequences,
        queries: Sequence[int] | None = None,
    ) -> list[jax.Array]:
        """Return attention maps, float32 [G, count, H, queries, length] a crop group.

        Args:
          x: Tokens before the block, [G, T, D].
          sequences: (count, length) of each crop group.
          queries: Tokens of each sequence whose rows to compute; None computes all.
        """
        return self.attn.maps(self.norm1(x), sequences, queries)


def cast_matmuls(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Cast the kernels and biases of linear layers to the dtype of the matmuls.

    Args:
      params: Parameters of a `Block`; several may be stacked on leading axes.
      dtype: Dtype of the matmuls.
    """
    linear = jax.tree.map(
        lambda weight: weight.astype(dtype), {p: params[p] for p in ("attn", "mlp")}
    )
    return dict(params) | linear


def bind(
    params: Mapping[str, Any],
    config: model_config.ModelConfig,
    *,
    kernel: str,
    dtype: Any,
) -> Block:
    """Return a block with its weights, gathered once for all crop groups."""
    block = Block(config, kernel, dtype, parent=None)
    return block.bind({"params": sharding.gather(params)})
