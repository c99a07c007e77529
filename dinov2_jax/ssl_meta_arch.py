"""Student, teacher and the weighted sum of losses.

Mirrors the reference's `train/ssl_meta_arch.py:SSLMetaArch.forward_backward`. Student
and teacher are one `apply` with two trees, {"backbone", "dino_head"[, "ibot_head"]}.
The batch is described in `data/batch_builder.py`. Shapes: G groups, b images a group, L
local crops, S and s pixels, N patches of a global crop, M masked-patch slots, K
prototypes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.data import recipe
from dinov2_jax.losses import dino, koleo, prototype_loss, prototype_targets
from dinov2_jax.models import dino_head, vision_transformer

Params = dict[str, Any]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class SSLMetaArch:
    """Pure functions of parameters and a batch; holds modules and weights of losses.

    Attributes:
      ibot_head: None where the DINO head serves both.
      centering: "sinkhorn_knopp" or "centering".
      koleo_loss_weight: Of each of the two views.
      policy: How crops are augmented that come with keys.
      mean: Of each channel of the images, of values in [0, 1].
      std: Of each channel.
    """

    backbone: vision_transformer.VisionTransformer
    dino_head: dino_head.DINOHead
    ibot_head: dino_head.DINOHead | None
    centering: str
    dino_loss_weight: float
    koleo_loss_weight: float
    ibot_loss_weight: float
    policy: recipe.Policy = recipe.POLICIES["rgb"]
    mean: tuple[float, ...] = recipe.IMAGENET_MEAN
    std: tuple[float, ...] = recipe.IMAGENET_STD

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters with the reference's initialisation, float32."""
        keys = jax.random.split(key, 3)
        size = self.backbone.image_size
        image = jnp.zeros((1, size, size, self.backbone.in_chans))
        token = jnp.zeros((1, self.backbone.embed_dim))
        params = {
            "backbone": self.backbone.init(keys[0], image)["params"],
            "dino_head": self.dino_head.init(keys[1], token)["params"],
        }
        if self.ibot_head is not None:
            params["ibot_head"] = self.ibot_head.init(keys[2], token)["params"]
        return params

    def normalize(self, crops: jax.Array) -> jax.Array:
        """`normalize` with the statistics of these images."""
        return normalize(crops, self.mean, self.std)

    def init_centers(self) -> dict[str, jax.Array]:
        """Centres of the EMA centring, [K] zeros; empty with Sinkhorn-Knopp."""
        if self.centering == "sinkhorn_knopp":
            return {}
        ibot = self.ibot_head or self.dino_head
        return {
            "dino": jnp.zeros((self.dino_head.num_prototypes,)),
            "ibot": jnp.zeros((ibot.num_prototypes,)),
        }

    def teacher_targets(
        self,
        teacher_params: Params,
        centers: dict[str, jax.Array],
        batch: Batch,
        teacher_temp: jax.Array | float,
    ) -> tuple[dict[str, prototype_targets.Targets], dict[str, jax.Array]]:
        """The teacher's side of the losses, from the unmasked global crops.

        Returns:
          {"dino": for [G, b, 2], "ibot": for [G, M, 1]} (those in use) and the centres
          for the next step.
        """
        (cls,), masked = self.backbone.apply(
            {"params": teacher_params["backbone"]},
            [self.normalize(batch["global_crops"])],
            [None],
            batch["masked_indices"],
            method="forward_chosen",
        )
        rows, valid = {}, {"dino": None, "ibot": batch["masked_weights"] > 0}
        if self.dino_loss_weight:
            rows["dino"] = by_image(cls, 2)
        if self._use_ibot(batch):
            rows["ibot"] = masked[:, :, None]
        heads = self._heads(teacher_params)
        targets, new_centers = {}, dict(centers)
        for term, x in rows.items():
            x, weights = heads[term](x)
            if self.centering == "sinkhorn_knopp":
                targets[term] = prototype_targets.sinkhorn_knopp(
                    x, weights, teacher_temp, valid=valid[term]
                )
            else:
                targets[term] = prototype_targets.centered(
                    x, weights, teacher_temp, centers[term]
                )
                new_centers[term] = prototype_targets.update_center(
                    centers[term], targets[term], valid[term]
                )
        return targets, new_centers

    def loss(
        self,
        params: Params,
        targets: dict[str, prototype_targets.Targets],
        batch: Batch,
        drop_path_key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The student's loss.

        Args:
          params: The student's.
          targets: From `teacher_targets`.
          batch: See `data/batch_builder.py`; uint8 crops are normalised here.
          drop_path_key: Draws the stochastic-depth subsets.

        Returns:
          The total, and its terms as they enter it: `dino_local`, `dino_global`,
          `koleo`, `ibot` (the reference logs the last two halved).
        """
        global_crops, local_crops = batch["global_crops"], batch["local_crops"]
        num_groups, num_global = global_crops.shape[:2]
        crops, masks = [self.normalize(global_crops)], [batch["masks"]]
        if local_crops.shape[1]:
            crops.append(self.normalize(local_crops))
            masks.append(None)
        cls, masked = self.backbone.apply(
            {"params": params["backbone"]},
            crops,
            masks,
            batch["masked_indices"],
            drop_path_key,
            method="forward_chosen",
        )
        images = num_global // 2
        heads = self._heads(params)
        terms, parts = {}, {}
        if self.dino_loss_weight:
            views = [by_image(x, x.shape[1] // images) for x in cls]
            x, weights = heads["dino"](jnp.concatenate(views, axis=2))
            pairs, normaliser = dino.crop_pairs(num_local=x.shape[2] - 2)
            scale = self.dino_loss_weight / (num_groups * images * normaliser)
            terms["dino"], by_crop = prototype_loss.cross_entropy(
                x, weights, targets["dino"], jnp.full(x.shape[:2], scale), pairs=pairs
            )
            parts["dino_local"] = jnp.sum(by_crop[2:])
            parts["dino_global"] = jnp.sum(by_crop[:2])
        if self.koleo_loss_weight:
            views = cls[0].reshape(num_groups, 2, images, -1)
            per_view = jnp.mean(koleo.koleo_loss(views), axis=0)
            terms["koleo"] = self.koleo_loss_weight * jnp.sum(per_view)
            parts["koleo"] = terms["koleo"]
        if self._use_ibot(batch):
            x, weights = heads["ibot"](masked[:, :, None])
            scale = self.ibot_loss_weight / (num_groups * num_global)
            terms["ibot"], _ = prototype_loss.cross_entropy(
                x,
                weights,
                targets["ibot"],
                batch["masked_weights"] * scale,
                pairs=((0,),),
            )
            parts["ibot"] = terms["ibot"]
        return sum(terms.values()), parts

    def _use_ibot(self, batch: Batch) -> bool:
        return bool(self.ibot_loss_weight) and batch["masked_indices"].shape[1] > 0

    def _heads(self, params: Params) -> dict[str, Callable[[jax.Array], tuple]]:
        """By term: [..., D] -> bottleneck features and prototypes of its head.

        The DINO head stands in for an iBOT head that is shared.
        """

        def call(head, params):
            weights = head.apply({"params": params}, method="prototypes")  # once a step
            return lambda x: (
                head.apply({"params": params}, x, method="bottleneck"),
                weights,
            )

        heads = {"dino": call(self.dino_head, params["dino_head"])}
        heads["ibot"] = heads["dino"]
        if self.ibot_head is not None:
            heads["ibot"] = call(self.ibot_head, params["ibot_head"])
        return heads


def by_image(crops: jax.Array, views: int) -> jax.Array:
    """Crop-major [G, views * b, D] -> [G, b, views, D]."""
    groups, count, dim = crops.shape
    return crops.reshape(groups, views, count // views, dim).swapaxes(1, 2)


def normalize(
    crops: jax.Array,
    mean: Sequence[float] = recipe.IMAGENET_MEAN,
    std: Sequence[float] = recipe.IMAGENET_STD,
) -> jax.Array:
    """uint8 crops in 0..255 -> float32 with mean 0 and deviation 1.

    Args:
      crops: [..., C]; floating-point ones are taken as normalised already.
      mean: Of each channel, of values in [0, 1].
      std: Of each channel.
    """
    if crops.dtype != jnp.uint8:
        return crops.astype(jnp.float32)
    mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, std))
    return (crops.astype(jnp.float32) / 255.0 - mean) / std


def make_ssl_meta_arch(config: Any, dtype: Any) -> SSLMetaArch:
    """The architecture that a config describes, with matmuls in `dtype`."""
    ibot_head = None
    if config.ibot.separate_head and config.ibot.loss_weight:
        ibot_head = dino_head.make_dino_head(config.ibot, dtype)
    return SSLMetaArch(
        backbone=vision_transformer.make_vision_transformer(config, dtype),
        dino_head=dino_head.make_dino_head(config.dino, dtype),
        ibot_head=ibot_head,
        centering=config.train.centering,
        dino_loss_weight=config.dino.loss_weight,
        koleo_loss_weight=config.dino.koleo_loss_weight,
        ibot_loss_weight=config.ibot.loss_weight,
        policy=recipe.make_policy(config),
        mean=tuple(config.data.mean) or recipe.IMAGENET_MEAN,
        std=tuple(config.data.std) or recipe.IMAGENET_STD,
    )
