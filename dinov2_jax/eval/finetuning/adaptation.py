"""Which parameters of a backbone are fine-tuned: all, those of last blocks, or LoRA.

LoRA (`models.lora`) adapts both projections of each attention.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.models import lora

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
            return self._lora().init(key, backbone)
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
        if self.lora_rank:
            return self._lora().merge(backbone, trained)
        joined = jax.tree.map(
            lambda old, new: jnp.concatenate([old[: -self.last_blocks], new]),
            backbone["blocks"],
            trained["blocks"],
        )
        return backbone | trained | {"blocks": joined}

    def _lora(self) -> lora.LoRA:
        return lora.LoRA(self.lora_rank, self.lora_alpha)
