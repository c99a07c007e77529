"""The transformer block and its parts. Mirrors the reference's `layers/`.

Shapes: G groups, T tokens of a group's flat stream, D width.
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

# torch's trunc_normal_(std=0.02) truncates at +-2 absolute, 100 sigma: a plain normal.
linear_init = nn.initializers.normal(0.02)


def torch_default_init(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in): what torch gives layers left uninitialised."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU as torch computes it; only `x` is kept for the backward pass.

    `jax.nn.gelu(approximate=False)` goes through erfc, slower and no more exact here.
    """
    return jax.checkpoint(
        lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5)), prevent_cse=False
    )(x)


def dense(
    features: int, use_bias: bool, dtype: Any, name: str | None = None, **settings: Any
) -> nn.Dense:
    """A linear layer with the reference's initialisation; `settings` are flax's."""
    settings = {"kernel_init": linear_init} | settings
    return nn.Dense(features, use_bias=use_bias, dtype=dtype, name=name, **settings)


def cast_and_gather(x, *weights, dtype, **_):
    """The `promote_dtype` of a layer whose weights are still divided over devices."""
    weights = [None if w is None else w.astype(dtype) for w in weights]
    return x.astype(dtype), *sharding.gather(weights)


# ([..., D], kernels [D, F] each) -> [..., F] each: matmuls of tokens, normalised first.
Project = Callable[[jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


class LayerNorm(nn.Module):
    """Over the last axis; parameters are named as flax names them."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, kernels: tuple[jax.Array, ...] | None = None
    ) -> Any:
        """[..., D] -> [..., D] in `dtype`; with kernels what `Project` returns."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = layer_norm.layer_norm(x, scale, bias).astype(self.dtype)
        return x if kernels is None else tuple(x @ kernel for kernel in kernels)


class Weights(nn.Module):
    """Kernel and bias of a linear layer, named as flax's `Dense` names them."""

    shape: tuple[int, int]
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[Any, Any]:
        """The kernel [in, out] and the bias [out], or None, in `dtype`.

        From `block_weights` there may be a bias though `use_bias` is False, and each
        may be the two halves of itself.
        """
        if self.is_initializing():
            self.param("kernel", linear_init, self.shape)
            if self.use_bias:
                self.param("bias", nn.initializers.zeros, self.shape[1:])
        params = self.variables["params"]
        weights = params["kernel"], params.get("bias")
        return jax.tree.map(lambda weight: weight.astype(self.dtype), weights)


class Attention(nn.Module):
    """Multi-head self-attention on the flat stream; `kernel` is an implementation."""

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
        """[G, T, D] -> [G, T, D] and a bias to add, or maps; `kernels.attention`."""
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
    """Linear, exact (erf) GELU, linear; `ratio` times as wide inside."""

    ratio: float
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, project: Project) -> tuple[jax.Array, Any]:
        """[..., D] -> [..., D] and a bias [D], or None, that is to be added to it."""
        dim, hidden_dim = x.shape[-1], int(x.shape[-1] * self.ratio)
        weights = functools.partial(Weights, use_bias=self.use_bias, dtype=self.dtype)
        kernel, bias = weights((dim, hidden_dim), name="fc1")()
        out_kernel, out_bias = weights((hidden_dim, dim), name="fc2")()
        x = linear.activated(gelu, project(x, (kernel,)), (bias,), out_kernel)
        return x, out_bias


class SwiGLU(nn.Module):
    """silu(x1) * x2 with (x1, x2) from one packed projection; `ratio` as of `Mlp`."""

    ratio: float
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, project: Project) -> tuple[jax.Array, Any]:
        """[..., D] -> [..., D] and a bias [D], or None, that is to be added to it."""
        dim = x.shape[-1]
        # Two thirds of the MLP's hidden width, rounded up to a multiple of 8.
        hidden_dim = (int(int(dim * self.ratio) * 2 / 3) + 7) // 8 * 8
        weights = functools.partial(Weights, use_bias=self.use_bias, dtype=self.dtype)
        kernel, bias = weights((dim, 2 * hidden_dim), name="w12")()
        out_kernel, out_bias = weights((hidden_dim, dim), name="w3")()
        # Two matmuls: halves of one product would be cut out of it for every use.
        x = linear.activated(
            _gated, project(x, halves(kernel)), halves(bias), out_kernel
        )
        return x, out_bias


def _gated(gate, value):
    return nn.silu(gate) * value


def halves(weight: Any) -> tuple[jax.Array | None, jax.Array | None]:
    """Gate and value of a packed kernel or bias; of one that was split, itself."""
    if isinstance(weight, tuple):
        return weight
    if weight is None:
        return None, None
    gate, value = jnp.split(weight, 2, axis=-1)
    return gate, value


class LayerScale(nn.Module):
    """One learned factor a channel."""

    init_value: float

    @nn.compact
    def __call__(
        self, x: jax.Array, bias: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """[..., D] and a bias [D] or None -> the same, scaled."""
        gamma = self.param(
            "gamma", nn.initializers.constant(self.init_value), x.shape[-1:]
        ).astype(x.dtype)
        return x * gamma, None if bias is None else bias * gamma


class Block(nn.Module):
    """x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x))), on a subset in training.

    Attributes:
      layerscale: Initial gamma; 0 builds no LayerScale.
      ffn_layer: "mlp" or "swiglufused".
      kernel: Implementation of `kernels.attention`.
      folded: Norms and LayerScale are in the weights; see `models.block_weights`.
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
        """Declares the parts under the reference's names."""
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
        """One block on the flat stream.

        Args:
          x: [G, T, D].
          sequences: (count, length) of each crop group in the stream.
          kept: None computes every sample. Otherwise, for the attention and the FFN
            branch, the samples computed in each crop group, [G, k] each; see
            `models.stochastic_depth`.

        Returns:
          [G, T, D].
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
        """The first half of the block, [G, T, D] -> [G, T, D]."""

        def branch(tokens, lengths, statistics):
            norm = self._knowing(statistics, self.norm1)
            return self.ls1(*self.attn(tokens, norm, lengths))

        return stochastic_depth.add_residual(x, branch, sequences, kept)

    def ffn(self, tokens: jax.Array) -> jax.Array:
        """What the second half adds to tokens [..., D], each for itself."""
        return linear.add_bias(*self._ffn(tokens, None))

    def _ffn(self, tokens, statistics):
        return self.ls2(*self.mlp(tokens, self._knowing(statistics, self.norm2)))

    def _knowing(self, statistics, norm):
        """The norm of tokens whose statistics are known, if a folded one."""
        if statistics is None or not self.folded:
            return norm
        return functools.partial(norm, statistics=statistics)

    def attention_maps(
        self, x: jax.Array, sequences: tuple[tuple[int, int], ...]
    ) -> list[jax.Array]:
        """[G, T, D] -> one float32 [G, count, H, length, length] a crop group."""
        return self.attn(x, self.norm1, sequences, maps=True)
