"""A transformer block with norms and LayerScale folded into its weights.

Equal to `layers.Block` up to rounding, and faster in training: weights are scaled and
shifted in place of every token. With r = 1 / deviation,

  (r (x - mean) scale + shift) @ W + b = r x @ C(scale W) + (shift @ W + b),
  gamma * (x @ W + b) = x @ (W gamma) + b gamma,

where C subtracts its mean from each column, so that x need not be centred. What remains
of a norm is `kernels.layer_norm.project`; the gradients of scale and shift are sums
over weights instead of tokens.

Shapes: G groups, T tokens in a group's flat stream, D width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dinov2_jax import sharding
from dinov2_jax.kernels import attention as attention_kernel
from dinov2_jax.kernels import layer_norm, linear
from dinov2_jax.models import layers, model_config, stochastic_depth

# Each norm and the layer after it; each LayerScale and the layer before it.
_NORMED = (("norm1", "attn", "qkv"), ("norm2", "mlp", "fc1"), ("norm2", "mlp", "w12"))
_SCALED = (("ls1", "attn", "proj"), ("ls2", "mlp", "fc2"), ("ls2", "mlp", "w3"))


def fold(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Convert the weights of blocks to equivalent ones for `FoldedBlock`.

    Args:
      params: Parameters of a `layers.Block`, with or without LayerScale, float32;
        several blocks may be stacked on leading axes.
      dtype: Dtype of the matmuls.

    Returns:
      Parameters without norms and LayerScale, with the sharding of `params`.
    """
    block = {part: dict(params[part]) for part in ("attn", "mlp")}
    for norm, part, layer in _NORMED:
        if layer in block[part]:
            block[part][layer] = _with_norm(params[norm], block[part][layer])
    for scale, part, layer in _SCALED:
        if scale in params and layer in block[part]:
            gamma = params[scale]["gamma"]
            factors = {"kernel": gamma[..., None, :], "bias": gamma}
            block[part][layer] = {
                name: weight * factors[name]
                for name, weight in block[part][layer].items()
            }
    return jax.tree.map(lambda weight: weight.astype(dtype), block)


def _with_norm(norm, layer):
    """Fold a norm's scale and shift into the kernel and bias of the next layer."""
    kernel = layer["kernel"]
    # Not a matmul, for which the compiler may gather float32 weights.
    bias = jnp.sum(norm["bias"][..., None] * kernel, axis=-2)
    if "bias" in layer:
        bias += layer["bias"]
    kernel = kernel * norm["scale"][..., None]
    return {"kernel": kernel - jnp.mean(kernel, -2, keepdims=True), "bias": bias}


def gather(block: Mapping[str, Any]) -> dict[str, Any]:
    """Gather one folded block's weights; split SwiGLU's packed layer in two.

    Done once for all crop groups, so that their gradients are summed before they are
    scattered to the devices that hold the weights.
    """
    block = sharding.gather(block)
    if "w12" in block["mlp"]:
        # Split here, so that each half's gradients are summed before they are joined.
        w12 = {name: _halves(w) for name, w in block["mlp"]["w12"].items()}
        block["mlp"] = block["mlp"] | {"w12": w12}
    return block


def _halves(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split SwiGLU's packed kernel or bias into those of gate and value."""
    gate, value = jnp.split(weight, 2, axis=-1)
    return gate, value


@dataclasses.dataclass(frozen=True)
class FoldedBlock:
    """The function of `layers.Block` on folded weights.

    Attributes:
      config: The architecture.
      kernel: Implementation of the attention, see `kernels.attention`.
      weights: Weights of the block, from `gather`.
    """

    config: model_config.ModelConfig
    kernel: str
    weights: Mapping[str, Any]

    def __call__(
        self,
        x: jax.Array,
        sequences: layers.Sequences,
        kept: stochastic_depth.Kept | None = None,
    ) -> jax.Array:
        """Apply the block to the flat stream; arguments as in `layers.Block`."""
        x = self.add_attention(x, sequences, kept and kept[0])

        def branch(tokens, _, statistics):
            return self._ffn(tokens, statistics)

        return stochastic_depth.add_residual(x, branch, sequences, kept and kept[1])

    def add_attention(
        self,
        x: jax.Array,
        sequences: layers.Sequences,
        kept: tuple[jax.Array, ...] | None,
    ) -> jax.Array:
        """Apply the first half of the block, [G, T, D] -> [G, T, D]."""

        @jax.named_scope("attn")
        def branch(tokens, sequences, statistics):
            weights = self.weights["attn"]
            x = attention_kernel.attention(
                self._qkv(tokens, statistics),
                weights["qkv"].get("bias"),
                sequences=sequences,
                num_heads=self.config.num_heads,
                implementation=self.kernel,
            )
            x = checkpoint_name(x, "attention")
            return x @ weights["proj"]["kernel"], weights["proj"].get("bias")

        return stochastic_depth.add_residual(x, branch, sequences, kept)

    def ffn(self, tokens: jax.Array) -> jax.Array:
        """Compute what the second half adds to tokens [..., D], each on its own."""
        return linear.add_bias(*self._ffn(tokens, None))

    def attention_maps(
        self,
        x: jax.Array,
        sequences: layers.Sequences,
        queries: Sequence[int] | None = None,
    ) -> list[jax.Array]:
        """Return attention maps; arguments as in `layers.Block`."""
        qkv = linear.add_bias(
            self._qkv(x, None), self.weights["attn"]["qkv"].get("bias")
        )
        return attention_kernel.attention_maps(
            qkv,
            sequences=sequences,
            num_heads=self.config.num_heads,
            queries=queries,
        )

    def _qkv(self, tokens, statistics):
        """Return the projections [G, T, 3*D], with their bias still to be added."""
        kernel = self.weights["attn"]["qkv"]["kernel"]
        (qkv,) = layer_norm.project(tokens, (kernel,), statistics)
        return qkv

    @jax.named_scope("mlp")
    def _ffn(self, tokens, statistics):
        """Return the residual [..., D] and a bias [D], or None, still to be added."""
        weights = self.weights["mlp"]
        if self.config.ffn_layer == "swiglufused":
            # Two matmuls: halves of one product would be sliced out for every use.
            activation, first, second = _gated, weights["w12"], weights["w3"]
            kernels, biases = first["kernel"], first.get("bias", (None, None))
        else:
            activation, first, second = layers.gelu, weights["fc1"], weights["fc2"]
            kernels, biases = (first["kernel"],), (first.get("bias"),)
        hidden = layer_norm.project(tokens, kernels, statistics)
        product = linear.activated(activation, hidden, biases, second["kernel"])
        return product, second.get("bias")


def bind(
    weights: Mapping[str, Any],
    config: model_config.ModelConfig,
    *,
    kernel: str,
    dtype: Any,
) -> FoldedBlock:
    """Return a block with its folded weights, gathered once for all crop groups."""
    del dtype  # that of the weights
    return FoldedBlock(config, kernel, gather(weights))


def _gated(gate, value):
    return jax.nn.silu(gate) * value
