"""Which parameters of a backbone are fine-tuned: all, those of last blocks, or LoRA.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": a weight W is kept
and W + alpha / rank * A B is used, with A random and B zero at first. Here both
projections of each attention are adapted, queries, keys and values by one pair.

Shapes: L blocks, D width, r rank.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

_ADAPTED = ("qkv", "proj")
_UNUSED = "mask_token"  # has no gradient, and would only decay


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """The choice of the parameters that are trained.

    Attributes:
      last_blocks: Number of last blocks that are trained, with the last LayerNorm; 0
        trains the whole backbone.
      lora_rank: Rank r of LoRA; 0 for none. Everything else of the backbone is kept.
      lora_alpha: Factor alpha of LoRA; A B is scaled by alpha / rank.
    """

    last_blocks: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0

    def init(self, key: jax.Array, backbone: Any) -> Any:
        """Return the parameters to train, the tree that `merge` takes.

        Args:
          key: PRNG key of LoRA's matrices.
          backbone: Parameters of the backbone, blocks stacked.
        """
        if self.lora_rank:
            attention = backbone["blocks"]["attn"]
            keys = jax.random.split(key, len(_ADAPTED))
            pairs = {
                name: self._pair(k, attention[name]["kernel"])
                for name, k in zip(_ADAPTED, keys)
            }
            return {"blocks": {"attn": pairs}}
        if self.last_blocks:
            last = jax.tree.map(lambda x: x[-self.last_blocks :], backbone["blocks"])
            return {"blocks": last, "norm": backbone["norm"]}
        return {name: x for name, x in backbone.items() if name != _UNUSED}

    def kept(self, backbone: Any) -> Any:
        """Return the parameters that `merge` needs besides the trained ones.

        Args:
          backbone: Parameters of the backbone before the fine-tuning.
        """
        if self.lora_rank or self.last_blocks:
            return backbone
        return {_UNUSED: backbone[_UNUSED]}

    def merge(self, backbone: Any, trained: Any) -> Any:
        """Return the parameters of the whole backbone.

        Args:
          backbone: Its parameters before the fine-tuning, those of `kept`.
          trained: The parameters that are trained, from `init`.
        """
        if not (self.lora_rank or self.last_blocks):
            return backbone | trained
        blocks = backbone["blocks"]
        if self.lora_rank:
            attention = dict(blocks["attn"])
            for name, pair in trained["blocks"]["attn"].items():
                kernel = self._merged(attention[name]["kernel"], pair)
                attention[name] = attention[name] | {"kernel": kernel}
            return backbone | {"blocks": blocks | {"attn": attention}}
        joined = jax.tree.map(
            lambda old, new: jnp.concatenate([old[: -self.last_blocks], new]),
            blocks,
            trained["blocks"],
        )
        return backbone | trained | {"blocks": joined}

    def _pair(self, key, kernel):
        """Return LoRA's matrices for kernels [L, D_in, D_out]."""
        depth, rows, columns = kernel.shape
        bound = rows**-0.5
        a = jax.random.uniform(
            key, (depth, rows, self.lora_rank), minval=-bound, maxval=bound
        )
        return {"a": a, "b": jnp.zeros((depth, self.lora_rank, columns))}

    def _merged(self, kernel, pair):
        change = jnp.matmul(pair["a"], pair["b"], precision=jax.lax.Precision.HIGHEST)
        return kernel + self.lora_alpha / self.lora_rank * change
