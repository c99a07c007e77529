"""Student, teacher and the weighted sum of losses.

Mirrors the reference's `train/ssl_meta_arch.py:SSLMetaArch.forward_backward`. Student
and teacher are one `apply` with two trees, {"backbone", "dino_head"[, "ibot_head"]}.
The batch is described in `data/loader.py`. Shapes: G groups, b images a group, L local
crops, S and s pixels, N patches of a global crop, M masked-patch slots, K prototypes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.data import augmentations
from dinov2_jax.losses import dino, koleo, teacher_targets
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
    """

    backbone: vision_transformer.VisionTransformer
    dino_head: dino_head.DINOHead
    ibot_head: dino_head.DINOHead | None
    centering: str
    dino_loss_weight: float
    koleo_loss_weight: float
    ibot_loss_weight: float

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
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Target probabilities from the unmasked global crops.

        Returns:
          {"dino": [G, 2b, K], "ibot": [G, M, K]} (those in use) and the centres for
          the next step.
        """
        (features,) = self.backbone.apply(
            {"params": teacher_params["backbone"]},
            [normalize(batch["global_crops"])],
            [None],
            method="forward_crops",
        )
        valid = batch["masked_weights"] > 0
        logits, targets, new_centers = {}, {}, dict(centers)
        if self.dino_loss_weight:
            logits["dino"] = self._head(teacher_params, "dino_head", features.cls)
        if self._use_ibot(batch):
            masked = gather_masked(features.patches, batch["masked_indices"])
            logits["ibot"] = self._head(teacher_params, "ibot_head", masked)
        for term, term_logits in logits.items():
            mask = valid if term == "ibot" else None
            if self.centering == "sinkhorn_knopp":
                targets[term] = teacher_targets.sinkhorn_knopp(
                    term_logits, teacher_temp, valid=mask
                )
            else:
                targets[term] = teacher_targets.centered_softmax(
                    term_logits, centers[term], teacher_temp
                )
                new_centers[term] = teacher_targets.update_center(
                    centers[term], term_logits, mask
                )
        return targets, new_centers

    def loss(
        self,
        params: Params,
        targets: dict[str, jax.Array],
        batch: Batch,
        drop_path_key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The student's loss.

        Args:
          params: The student's.
          targets: From `teacher_targets`.
          batch: See `data/loader.py`; uint8 crops are normalised here.
          drop_path_key: Draws the stochastic-depth subsets.

        Returns:
          The total, and its terms as they enter it: `dino_local`, `dino_global`,
          `koleo`, `ibot` (the reference logs the last two halved).
        """
        global_crops, local_crops = batch["global_crops"], batch["local_crops"]
        num_groups, num_global = global_crops.shape[:2]
        crops, masks = [normalize(global_crops)], [batch["masks"]]
        if local_crops.shape[1]:
            crops.append(normalize(local_crops))
            masks.append(None)
        features, *local = self.backbone.apply(
            {"params": params["backbone"]},
            crops,
            masks,
            drop_path_key,
            method="forward_crops",
        )
        terms = {}
        if self.dino_loss_weight:
            cls = jnp.concatenate([features.cls, *(f.cls for f in local)], axis=1)
            logits = self._head(params, "dino_head", cls)
            global_term, local_term = dino.dino_loss(
                logits[:, :num_global], logits[:, num_global:], targets["dino"]
            )
            terms["dino_local"] = self.dino_loss_weight * local_term
            terms["dino_global"] = self.dino_loss_weight * global_term
        if self.koleo_loss_weight:
            views = features.cls.reshape(num_groups, 2, num_global // 2, -1)
            per_view = jnp.mean(koleo.koleo_loss(views), axis=0)
            terms["koleo"] = self.koleo_loss_weight * jnp.sum(per_view)
        if self._use_ibot(batch):
            masked = gather_masked(features.patches, batch["masked_indices"])
            terms["ibot"] = self.ibot_loss_weight * dino.ibot_loss(
                self._head(params, "ibot_head", masked),
                targets["ibot"],
                batch["masked_weights"],
                num_global,
            )
        return sum(terms.values()), terms

    def _use_ibot(self, batch: Batch) -> bool:
        return bool(self.ibot_loss_weight) and batch["masked_indices"].shape[1] > 0

    def _head(self, params: Params, name: str, x: jax.Array) -> jax.Array:
        """Logits of a head; the DINO head stands in for an iBOT head that is shared."""
        if name == "ibot_head" and self.ibot_head is not None:
            return self.ibot_head.apply({"params": params["ibot_head"]}, x)
        return self.dino_head.apply({"params": params["dino_head"]}, x)


def normalize(crops: jax.Array) -> jax.Array:
    """uint8 crops in 0..255 -> float32 with ImageNet's mean 0 and deviation 1.

    Floating-point crops are taken as normalised already.
    """
    if crops.dtype != jnp.uint8:
        return crops.astype(jnp.float32)
    mean = jnp.asarray(augmentations.IMAGENET_MEAN, jnp.float32)
    std = jnp.asarray(augmentations.IMAGENET_STD, jnp.float32)
    return (crops.astype(jnp.float32) / 255.0 - mean) / std


def gather_masked(patches: jax.Array, indices: jax.Array) -> jax.Array:
    """[G, 2b, h, w, D] patches and [G, M] flat indices over 2b*h*w -> [G, M, D]."""
    flat = patches.reshape(patches.shape[0], -1, patches.shape[-1])
    return jnp.take_along_axis(flat, indices[..., None], axis=1)


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
    )
