"""The transformer block and its parts. Mirrors the reference's `layers/`.

Shapes: G groups, T tokens in a group's flat stream, D width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinov2_jax import sharding
from dinov2_jax.kernels import attention as attention_kernel
from dinov2_jax.kernels import layer_norm, linear
from dinov2_jax.models import stochastic_depth

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


# ([..., D], kernels [D, F] each) -> [..., F] each: normalise tokens, then matmuls.
Project = Callable[[jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, with flax's parameter names."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, kernels: tuple[jax.Array, ...] | None = None
    ) -> Any:
        """Normalise [..., D] to `dtype`; with kernels, act as a `Project`."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = layer_norm.layer_norm(x, scale, bias).astype(self.dtype)
        return x if kernels is None else tuple(x @ kernel for kernel in kernels)


class Weights(nn.Module):
    """Kernel and bias of a linear layer, with the parameter names of flax's `Dense`."""

    shape: tuple[int, int]
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[Any, Any]:
        """Return the kernel [in, out] and the bias [out], or None, in `dtype`.

        Weights from `block_weights` may have a bias even if `use_bias` is False, and
        each may be a tuple of its two halves.
        """
        if self.is_initializing():
            self.param("kernel", linear_init, self.shape)
            if self.use_bias:
                self.param("bias", nn.initializers.zeros, self.shape[1:])
        params = self.variables["params"]
        weights = params["kernel"], params.get("bias")
        return jax.tree.map(lambda weight: weight.astype(self.dtype), weights)


class Attention(nn.Module):
    """Multi-head self-attention on the flat stream.

    Attributes:
      kernel: Implementation, see `kernels.attention`.
    """

    num_heads: int
    qkv_bias: bool = True
    proj_bias: bool = True
    kernel: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        project: Project,
        sequences: Sequence[tuple[int, int]],
        maps: bool = False,
    ) -> Any:
        """Map [G, T, D] to [G, T, D] and a bias still to be added, or attention maps.

        Args:
          x: Tokens, [G, T, D].
          project: Function that normalises tokens and multiplies them by kernels.
          sequences: (count, length) of each crop group in the stream.
          maps: Return the maps of `kernels.attention.attention_maps` instead.
        """
        dim = x.shape[-1]
        weights = functools.partial(Weights, dtype=self.dtype)
        kernel, bias = weights((dim, 3 * dim), self.qkv_bias, name="qkv")()
        (qkv,) = project(x, (kernel,))
        shape = dict(sequences=sequences, num_heads=self.num_heads)
        if maps:
            return attention_kernel.attention_maps(linear.add_bias(qkv, bias), **shape)
        x = attention_kernel.attention(qkv, bias, implementation=self.kernel, **shape)
        x = checkpoint_name(x, "attention")
        kernel, bias = weights((dim, dim), self.proj_bias, name="proj")()
        return x @ kernel, bias


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear; hidden width `ratio` times the input's."""

    ratio: float
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, project: Project) -> tuple[jax.Array, Any]:
        """Map [..., D] to [..., D] and a bias [D], or None, still to be added."""
        dim, hidden_dim = x.shape[-1], int(x.shape[-1] * self.ratio)
        weights = functools.partial(Weights, use_bias=self.use_bias, dtype=self.dtype)
        kernel, bias = weights((dim, hidden_dim), name="fc1")()
        out_kernel, out_bias = weights((hidden_dim, dim), name="fc2")()
        x = linear.activated(gelu, project(x, (kernel,)), (bias,), out_kernel)
        return x, out_bias


class SwiGLU(nn.Module):
    """silu(x1) * x2 with (x1, x2) from one packed projection; `ratio` as in `Mlp`."""

    ratio: float
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, project: Project) -> tuple[jax.Array, Any]:
        """Map [..., D] to [..., D] and a bias [D], or None, still to be added."""
        dim = x.shape[-1]
        # Two thirds of `Mlp`'s hidden width, rounded up to a multiple of 8.
        hidden_dim = (int(int(dim * self.ratio) * 2 / 3) + 7) // 8 * 8
        weights = functools.partial(Weights, use_bias=self.use_bias, dtype=self.dtype)
        kernel, bias = weights((dim, 2 * hidden_dim), name="w12")()
        out_kernel, out_bias = weights((hidden_dim, dim), name="w3")()
        # Two matmuls: the halves of one product would be sliced out for every use.
        x = linear.activated(
            _gated, project(x, halves(kernel)), halves(bias), out_kernel
        )
        return x, out_bias


def _gated(gate, value):
    return nn.silu(gate) * value


def halves(weight: Any) -> tuple[jax.Array | None, jax.Array | None]:
    """Split a packed kernel or bias into gate and value, if it is not split yet."""
    if isinstance(weight, tuple):
        return weight
    if weight is None:
        return None, None
    gate, value = jnp.split(weight, 2, axis=-1)
    return gate, value


class LayerScale(nn.Module):
    """One learned factor for each channel."""

    init_value: float

    @nn.compact
    def __call__(
        self, x: jax.Array, bias: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Scale tokens [..., D] and their bias [D], or None."""
        gamma = self.param(
            "gamma", nn.initializers.constant(self.init_value), x.shape[-1:]
        ).astype(x.dtype)
        return x * gamma, None if bias is None else bias * gamma


class Block(nn.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))), on a subset in training.

    Attributes:
      ffn_layer: Kind of the second branch, "mlp" or "swiglufused".
      layerscale: Initial gamma; 0 builds no LayerScale.
      kernel: Implementation, see `kernels.attention`.
      folded: Whether norms and LayerScale are folded into the weights; see
        `models.block_weights`.
    """

    num_heads: int
    ffn_layer: str = "mlp"
    ffn_ratio: float = 4.0
    layerscale: float = 1e-5
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    kernel: str = "auto"
    folded: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        """Declare the submodules under the reference's names."""
        ffn = SwiGLU if self.ffn_layer == "swiglufused" else Mlp
        norm = layer_norm.project if self.folded else None
        self.norm1 = norm or LayerNorm(self.dtype)
        self.attn = Attention(
            self.num_heads, self.qkv_bias, self.proj_bias, self.kernel, self.dtype
        )
        self.norm2 = norm or LayerNorm(self.dtype)
        self.mlp = ffn(self.ffn_ratio, self.ffn_bias, self.dtype)
        if self.layerscale and not self.folded:
            self.ls1 = LayerScale(self.layerscale)
            self.ls2 = LayerScale(self.layerscale)
        else:
            self.ls1 = self.ls2 = lambda residual, bias: (residual, bias)

    def __call__(
        self,
        x: jax.Array,
        sequences: tuple[tuple[int, int], ...],
        kept: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]] | None = None,
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

        def branch(tokens, _, statistics):
            return self._ffn(tokens, statistics)

        return stochastic_depth.add_residual(x, branch, sequences, kept and kept[1])

    def add_attention(
        self,
        x: jax.Array,
        sequences: tuple[tuple[int, int], ...],
        kept: tuple[jax.Array, ...] | None,
    ) -> jax.Array:
        """Apply the first half of the block, [G, T, D] -> [G, T, D]."""

        def branch(tokens, lengths, statistics):
            norm = self._knowing(statistics, self.norm1)
            return self.ls1(*self.attn(tokens, norm, lengths))

        return stochastic_depth.add_residual(x, branch, sequences, kept)

    def ffn(self, tokens: jax.Array) -> jax.Array:
        """Compute what the second half adds to tokens [..., D], each on its own."""
        return linear.add_bias(*self._ffn(tokens, None))

    def _ffn(self, tokens, statistics):
        return self.ls2(*self.mlp(tokens, self._knowing(statistics, self.norm2)))

    def _knowing(self, statistics, norm):
        """Bind known statistics to the norm, if it is a folded one."""
        if statistics is None or not self.folded:
            return norm
        return functools.partial(norm, statistics=statistics)

    def attention_maps(
        self, x: jax.Array, sequences: tuple[tuple[int, int], ...]
    ) -> list[jax.Array]:
        """Return attention maps, float32 [G, count, H, length, length] a crop group."""
        return self.attn(x, self.norm1, sequences, maps=True)
