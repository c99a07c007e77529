"""A backbone and its heads, the network of a student or a teacher.

Shapes: G groups, B crops a group, S pixels, C channels, M masked-patch slots, D width,
K prototypes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.augment import policies
from dinov2_jax.models import dino_head as head_lib
from dinov2_jax.models import lora, stochastic_depth, vision_transformer

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """Pure functions of parameters {"backbone"[, heads][, "lora"]}.

    The heads are "dino_head" and "ibot_head". Where only a part of the backbone learns,
    the rest has no gradient.

    Attributes:
      backbone: The ViT.
      dino_head: The head for class tokens; None if there are no prototypes.
      ibot_head: The head for patches; None if the DINO head is used for both.
      mean: Mean of each channel of the images, with values in [0, 1].
      std: Standard deviation of each channel.
      last_blocks: Number of last blocks that learn, with the last LayerNorm; 0: the
        whole backbone.
      adapters: The LoRA that learns instead of the backbone; None for none.
    """

    backbone: vision_transformer.VisionTransformer
    dino_head: head_lib.DINOHead | None = None
    ibot_head: head_lib.DINOHead | None = None
    mean: tuple[float, ...] = policies.IMAGENET_MEAN
    std: tuple[float, ...] = policies.IMAGENET_STD
    last_blocks: int = 0
    adapters: lora.LoRA | None = None

    def init(self, key: jax.Array) -> Params:
        """Return new float32 parameters with the reference's initialisation."""
        keys = jax.random.split(key, 3)
        size = self.backbone.config.image_size
        image = jnp.zeros((1, size, size, self.backbone.config.in_chans))
        token = jnp.zeros((1, self.backbone.config.embed_dim))
        params = {"backbone": self.backbone.init(keys[0], image)["params"]}
        if self.dino_head is not None:
            params["dino_head"] = self.dino_head.init(keys[1], token)["params"]
        if self.ibot_head is not None:
            params["ibot_head"] = self.ibot_head.init(keys[2], token)["params"]
        if self.adapters is not None:
            lora_key = jax.random.fold_in(key, 3)
            params["lora"] = self.adapters.init(lora_key, params["backbone"])
        return params

    def merged(self, params: Params) -> Params:
        """Return the parameters with the adapters, if any, merged into the backbone.

        Args:
          params: The network's parameters, with or without adapters.

        Returns:
          {"backbone", "dino_head"[, "ibot_head"]}: what the EMA averages and everything
          else reads.
        """
        if self.adapters is None or "lora" not in params:
            return params
        kept = jax.lax.stop_gradient(params["backbone"])
        rest = {name: tree for name, tree in params.items() if name != "lora"}
        return rest | {"backbone": self.adapters.merge(kept, params["lora"])}

    def num_prototypes(self) -> dict[str, int]:
        """Return the number of prototypes of each loss term."""
        ibot = self.ibot_head or self.dino_head
        return {
            "dino": self.dino_head.num_prototypes,
            "ibot": ibot.num_prototypes,
        }

    def normalize(self, crops: jax.Array) -> jax.Array:
        """Normalise crops with the network's mean and standard deviation."""
        return normalize(crops, self.mean, self.std)

    def tokens(
        self,
        params: Params,
        crops: Sequence[jax.Array],
        masks: Sequence[jax.Array | None],
        indices: jax.Array,
        drop_path_key: jax.Array | None = None,
        micro_batch: stochastic_depth.MicroBatch | None = None,
    ) -> tuple[list[jax.Array], jax.Array]:
        """Compute the tokens that enter the losses.

        Args:
          params: The network's parameters.
          crops: Crops of each crop group, [G, B, S, S, C] each, uint8 or normalised.
          masks: Masked patches of each crop group, bool [G, B, h*w] or None each.
          indices: Patches of the first crop group, [G, M], flat over B*h*w.
          drop_path_key: PRNG key of the stochastic-depth subsets; None drops nothing.
          micro_batch: The groups of the batch that these are; None: all.

        Returns:
          Normalised class tokens, [G, B, D] a crop group, and patches [G, M, D].
        """
        backbone = self.merged(params)["backbone"]
        if self.last_blocks:
            backbone = _stop_below(backbone, self.last_blocks)
        tokens: Any = self.backbone.apply(
            {"params": backbone},
            [self.normalize(x) for x in crops],
            masks,
            indices,
            drop_path_key,
            micro_batch,
            method="forward_chosen",
        )
        return tokens

    def heads(self, params: Params) -> dict[str, Callable[[jax.Array], tuple]]:
        """Return the head of each loss term as a function.

        Args:
          params: The network's parameters.

        Returns:
          {"dino", "ibot"} of functions: tokens [..., D] -> bottleneck features and the
          prototypes (None if the head has none). Without an iBOT head, the DINO head is
          used for both.
        """

        prototypes = self.prototypes(params)  # once a step

        def call(term, head, params):
            return lambda x: (
                head.apply({"params": params}, x, method="bottleneck"),
                prototypes[term],
            )

        heads = {"dino": call("dino", self.dino_head, params["dino_head"])}
        heads["ibot"] = heads["dino"]
        if self.ibot_head is not None:
            heads["ibot"] = call("ibot", self.ibot_head, params["ibot_head"])
        return heads

    def prototypes(self, params: Params) -> dict[str, Any]:
        """Return the prototypes of each loss term, {"dino", "ibot"} of [K, C] or None.

        They are None if the head has none.
        """

        def call(head, params):
            if not head.num_prototypes:
                return None
            return head.apply({"params": params}, method="prototypes")

        weights = {"dino": call(self.dino_head, params["dino_head"])}
        weights["ibot"] = weights["dino"]
        if self.ibot_head is not None:
            weights["ibot"] = call(self.ibot_head, params["ibot_head"])
        return weights


def _stop_below(backbone: Params, last_blocks: int) -> Params:
    """Stop the gradients of all but the last blocks and the last LayerNorm."""

    def stop(x):
        learns = jnp.arange(len(x)) >= len(x) - last_blocks
        learns = learns.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(learns, x, jax.lax.stop_gradient(x))

    return jax.lax.stop_gradient(backbone) | {
        "blocks": jax.tree.map(stop, backbone["blocks"]),
        "norm": backbone["norm"],
    }


def crop_groups(
    batch: dict[str, jax.Array],
) -> tuple[list[jax.Array], list[jax.Array | None]]:
    """Return a batch's crops of each size, and their masks, as a student takes them.

    Args:
      batch: The batch, see `data/batch_builder.py`; without local crops they have no
        group.
    """
    crops = [batch["global_crops"]]
    masks: list[jax.Array | None] = [batch["masks"]]
    if batch["local_crops"].shape[1]:
        crops.append(batch["local_crops"])
        masks.append(None)
    return crops, masks


def by_image(crops: jax.Array, views: int) -> jax.Array:
    """Reorder crop-major tokens, [G, views * b, D] -> [G, b, views, D]."""
    groups, count, dim = crops.shape
    return crops.reshape(groups, views, count // views, dim).swapaxes(1, 2)


def views_by_image(tokens: Sequence[jax.Array], images: int) -> jax.Array:
    """Join the crop-major tokens of all crop groups, -> [G, b, views, D].

    Args:
      tokens: Tokens of each crop group, [G, its views * b, D].
      images: Images a group, b.
    """
    views = [by_image(x, x.shape[1] // images) for x in tokens]
    return jnp.concatenate(views, axis=2)


def normalize(
    crops: jax.Array,
    mean: Sequence[float] = policies.IMAGENET_MEAN,
    std: Sequence[float] = policies.IMAGENET_STD,
) -> jax.Array:
    """Normalise uint8 crops in 0..255 to float32 with mean 0 and deviation 1.

    Args:
      crops: Crops, [..., C]; floating-point ones are taken as normalised already.
      mean: Mean of each channel, with values in [0, 1].
      std: Standard deviation of each channel.
    """
    if crops.dtype != jnp.uint8:
        return crops.astype(jnp.float32)
    mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, std))
    return (crops.astype(jnp.float32) / 255.0 - mean) / std


def make_network(config: Any, dtype: Any) -> Network:
    """Return the network that a config describes, with matmuls in `dtype`."""
    prototypes = config.train.objective == "prototypes"
    ibot_head = None
    if config.ibot.separate_head and config.ibot.loss_weight:
        ibot_head = head_lib.make_dino_head(config.ibot, dtype, prototypes=prototypes)
    return Network(
        backbone=vision_transformer.make_vision_transformer(config, dtype),
        dino_head=head_lib.make_dino_head(config.dino, dtype, prototypes=prototypes),
        ibot_head=ibot_head,
        mean=tuple(config.data.mean) or policies.IMAGENET_MEAN,
        std=tuple(config.data.std) or policies.IMAGENET_STD,
        last_blocks=config.optim.last_blocks * (config.optim.trainable == "last"),
        adapters=lora.make_lora(config.optim),
    )
