"""LoRA, changes of low rank to the matrices of a backbone that is kept.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1: a
weight W is kept and W + alpha / rank * A B is used, with A random and B zero at first,
so that training starts at W. The sum is formed before the forward pass, so the network
runs at its usual speed. Shapes: L blocks, r rank.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

_ATTENTION = ("qkv", "proj")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The matrices that are adapted, and how.

    Queries, keys and values of an attention share one pair of matrices.

    Attributes:
      rank: Rank r of the changes.
      alpha: Factor of the changes; A B is scaled by alpha / rank.
      ffn: Whether the FFN's matrices are adapted too, not only the attention's.
    """

    rank: int
    alpha: float = 16.0
    ffn: bool = False

    def init(self, key: jax.Array, backbone: Any) -> Any:
        """Return A and B of each adapted matrix.

        Args:
          key: PRNG key of the As.
          backbone: Parameters of the backbone, blocks stacked.

        Returns:
          {"blocks": {"attn": {"qkv": {"a": [L, rows, r], "b": [L, r, columns]}, ...}}}
        """
        blocks = backbone["blocks"]
        adapted = [("attn", name) for name in _ATTENTION]
        if self.ffn:
            adapted += [("mlp", name) for name in sorted(blocks["mlp"])]
        pairs: dict[str, Any] = {}
        for k, (part, name) in zip(jax.random.split(key, len(adapted)), adapted):
            kernel = blocks[part][name]["kernel"]
            pairs.setdefault(part, {})[name] = self._pair(k, kernel)
        return {"blocks": pairs}

    def merge(self, backbone: Any, pairs: Any) -> Any:
        """Return the parameters of the backbone with the changes added.

        Args:
          backbone: Parameters of the backbone that is kept.
          pairs: The tree from `init`, after some training.
        """
        blocks = dict(backbone["blocks"])
        for part, by_name in pairs["blocks"].items():
            layers = dict(blocks[part])
            for name, pair in by_name.items():
                kernel = self._merged(layers[name]["kernel"], pair)
                layers[name] = layers[name] | {"kernel": kernel}
            blocks[part] = layers
        return backbone | {"blocks": blocks}

    def _pair(self, key, kernel):
        """Return the matrices for kernels [L, rows, columns]."""
        depth, rows, columns = kernel.shape
        bound = rows**-0.5
        a = jax.random.uniform(
            key, (depth, rows, self.rank), minval=-bound, maxval=bound
        )
        return {"a": a, "b": jnp.zeros((depth, self.rank, columns))}

    def _merged(self, kernel, pair):
        change = jnp.matmul(pair["a"], pair["b"], precision=jax.lax.Precision.HIGHEST)
        return kernel + self.alpha / self.rank * change


def make_lora(optim: Any) -> LoRA | None:
    """Return the adapters that `config.optim` describes, None without LoRA."""
    if optim.trainable != "lora":
        return None
    return LoRA(optim.lora_rank, optim.lora_alpha, optim.lora_ffn)
