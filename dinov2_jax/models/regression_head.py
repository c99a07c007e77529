"""Head that predicts a teacher's tokens from a student's."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinov2_jax.models import layers


class RegressionHead(nn.Module):
    """LayerNorm and a linear layer, or an MLP, to the teacher's width.

    Attributes:
      out_dim: The teacher's width, D_T.
      kind: "linear" or "mlp", which has a hidden layer of the teacher's width.
      dtype: Dtype of the matmuls.
    """

    out_dim: int
    kind: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map tokens [..., D_S] to predictions [..., D_T], float32."""
        x = layers.LayerNorm(self.dtype, name="norm")(x)
        if self.kind == "mlp":
            x = layers.gelu(self._dense("hidden")(x))
        return self._dense("out")(x).astype(jnp.float32)

    def _dense(self, name):
        return layers.dense(
            self.out_dim, True, self.dtype, name, promote_dtype=layers.cast_and_gather
        )
