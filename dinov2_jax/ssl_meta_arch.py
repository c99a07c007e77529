"""The student, its teacher and the weighted sum of losses.

Mirrors the reference's `train/ssl_meta_arch.py:SSLMetaArch.forward_backward`. See
`data/batch_builder.py` for the batch. Shapes: G groups, b images a group, L local
crops, S and s pixels, N patches of a global crop, M masked-patch slots, K prototypes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax import gram_teacher
from dinov2_jax import teacher as teacher_lib
from dinov2_jax.augment import policies
from dinov2_jax.losses import dino, gram, koleo
from dinov2_jax.losses.tiled import cross_entropy
from dinov2_jax.models import network

Batch = teacher_lib.Batch


@dataclasses.dataclass(frozen=True)
class SSLMetaArch:
    """Pure functions of parameters and a batch, with the modules and loss weights.

    Attributes:
      student: The backbone and heads that are trained.
      teacher: The source of the targets; it has the same network in self-distillation.
      dino_loss_weight: Weight of the class tokens' cross-entropy.
      koleo_loss_weight: Weight of KoLeo, for each of the two views.
      ibot_loss_weight: Weight of the masked patches' cross-entropy.
      policy: Augmentation of crops whose batch has `augmentation_keys`.
      dino_local_loss_weight: Factor on the pairs with local crops in the DINO loss.
      gram: The teacher of Gram anchoring; None leaves it out.
    """

    student: network.Network
    teacher: teacher_lib.Teacher
    dino_loss_weight: float
    koleo_loss_weight: float
    ibot_loss_weight: float
    policy: policies.Policy = policies.POLICIES["rgb"]
    dino_local_loss_weight: float = 1.0
    gram: gram_teacher.GramTeacher | None = None

    def init_centers(self, params: network.Params) -> dict[str, Any]:
        """Return what the targets keep from step to step, for parameters at step 0."""
        centers: dict[str, Any] = dict(self.teacher.init_centers())
        if self.gram:
            centers[gram_teacher.KEY] = self.gram.init(params)
        return centers

    def loss(
        self,
        params: network.Params,
        targets: dict[str, Any],
        batch: Batch,
        drop_path_key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Compute the student's loss.

        Args:
          params: The student's parameters.
          targets: The teacher's targets.
          batch: The batch, see `data/batch_builder.py`; crops may be uint8.
          drop_path_key: PRNG key of the stochastic-depth subsets.

        Returns:
          The total and its weighted terms: `dino_local`, `dino_global`, `koleo` and
          `ibot` (the reference logs the last two halved), and `gram`.
        """
        global_crops, local_crops = batch["global_crops"], batch["local_crops"]
        num_groups, num_global = global_crops.shape[:2]
        crops, masks = [global_crops], [batch["masks"]]
        if local_crops.shape[1]:
            crops.append(local_crops)
            masks.append(None)
        indices = batch["masked_indices"]
        if self.gram:
            count = num_global * batch["masks"].shape[2]
            indices = gram_teacher.every_patch(num_groups, count)
        cls, patches = self.student.tokens(params, crops, masks, indices, drop_path_key)
        masked = patches
        if self.gram:
            masked = jnp.take_along_axis(
                patches, batch["masked_indices"][..., None], axis=1
            )
        images = num_global // 2
        heads = self.student.heads(params)
        terms, parts = {}, {}
        if self.dino_loss_weight:
            views = [network.by_image(x, x.shape[1] // images) for x in cls]
            x, weights = heads["dino"](jnp.concatenate(views, axis=2))
            pairs, normaliser = dino.crop_pairs(num_local=x.shape[2] - 2)
            scale = self.dino_loss_weight / (num_groups * images * normaliser)
            factors = (1.0, 1.0) + (self.dino_local_loss_weight,) * (len(pairs) - 2)
            terms["dino"], by_crop = cross_entropy.cross_entropy(
                x,
                weights,
                targets["dino"],
                jnp.full(x.shape[:2], scale),
                pairs=pairs,
                factors=() if set(factors) == {1.0} else factors,
            )
            parts["dino_local"] = jnp.sum(by_crop[2:])
            parts["dino_global"] = jnp.sum(by_crop[:2])
        if self.koleo_loss_weight:
            views = cls[0].reshape(num_groups, 2, images, -1)
            per_view = jnp.mean(koleo.koleo_loss(views), axis=0)
            terms["koleo"] = self.koleo_loss_weight * jnp.sum(per_view)
            parts["koleo"] = terms["koleo"]
        if self.ibot_loss_weight and batch["masked_indices"].shape[1]:
            x, weights = heads["ibot"](masked[:, :, None])
            scale = self.ibot_loss_weight / (num_groups * num_global)
            terms["ibot"], _ = cross_entropy.cross_entropy(
                x,
                weights,
                targets["ibot"],
                batch["masked_weights"] * scale,
                pairs=((0,),),
            )
            parts["ibot"] = terms["ibot"]
        if self.gram:
            target = targets[gram_teacher.KEY]
            by_crop = gram.gram_loss(
                patches.reshape(num_groups, num_global, -1, patches.shape[-1]),
                target.patches,
            )
            scale = target.weights / (num_groups * num_global)
            terms["gram"] = jnp.sum(scale * jnp.sum(by_crop, axis=1))
            parts["gram"] = terms["gram"]
        return sum(terms.values()), parts


def make_ssl_meta_arch(config: Any, dtype: Any) -> SSLMetaArch:
    """Return self-distillation as a config describes it, with matmuls in `dtype`."""
    student = network.make_network(config, dtype)
    weights = {"dino": config.dino.loss_weight, "ibot": config.ibot.loss_weight}
    teacher = teacher_lib.Teacher(
        network=student,
        centering=config.train.centering,
        terms=tuple(term for term, weight in weights.items() if weight),
    )
    return SSLMetaArch(
        student=student,
        teacher=teacher,
        dino_loss_weight=config.dino.loss_weight,
        koleo_loss_weight=config.dino.koleo_loss_weight,
        ibot_loss_weight=config.ibot.loss_weight,
        policy=policies.make_policy(config),
        dino_local_loss_weight=config.dino.local_loss_weight,
        gram=gram_teacher.make_gram_teacher(config, student),
    )
