"""The student, its teacher and the weighted sum of losses.

Mirrors the reference's `train/ssl_meta_arch.py:SSLMetaArch.forward_backward`. See
`data/batch_builder.py` for the batch. Shapes: G groups, b images a group, L local
crops, S and s pixels, N patches of a global crop, M masked-patch slots, K prototypes.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.augment import on_device, policies
from dinov2_jax.data import batch_spec
from dinov2_jax.losses import dino, gram, koleo
from dinov2_jax.losses.tiled import cross_entropy, queue
from dinov2_jax.models import network, stochastic_depth
from dinov2_jax.objectives import gram_teacher, patch_choice, teacher_view
from dinov2_jax.objectives import teacher as teacher_lib

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
      views: Teacher views that the global crops are paired with, see `losses.dino`.
      patches: The patches of the iBOT loss, and no masks; None: the masked ones.
      dino_local_loss_weight: Factor on the pairs with local crops in the DINO loss.
      gram: The teacher of Gram anchoring; None leaves it out.
    """

    student: network.Network
    teacher: teacher_lib.Teacher
    dino_loss_weight: float
    koleo_loss_weight: float
    ibot_loss_weight: float
    policy: policies.Policy = policies.POLICIES["rgb"]
    views: str = "other"
    patches: patch_choice.PatchChoice | None = None
    dino_local_loss_weight: float = 1.0
    gram: gram_teacher.GramTeacher | None = None

    def prepare(
        self,
        batch: Batch,
        key: jax.Array,
        micro_batch: stochastic_depth.MicroBatch | None = None,
    ) -> Batch:
        """Return the batch as teacher and student take it.

        Args:
          batch: The batch, see `data/batch_builder.py`.
          key: PRNG key of the step.
          micro_batch: The groups of the batch that these are; None: all.
        """
        undistorted = self.gram is not None and self.gram.undistorted
        batch = on_device.augment(batch, self.policy, undistorted=undistorted)
        if self.patches is not None:
            batch = self.patches(batch, key, micro_batch)
        return batch

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
        micro_batch: stochastic_depth.MicroBatch | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Compute the student's loss.

        Args:
          params: The student's parameters.
          targets: The teacher's targets.
          batch: The batch, from `prepare`; crops may be uint8.
          drop_path_key: PRNG key of the stochastic-depth subsets.
          micro_batch: The groups of the batch that these are; None: all. The losses of
            all micro-batches sum to the batch's.

        Returns:
          The total and its weighted terms: `dino_local`, `dino_global`, `koleo` and
          `ibot` (the reference logs the last two halved), and `gram`.
        """
        num_groups, num_global = batch["global_crops"].shape[:2]
        if micro_batch is not None:
            num_groups = micro_batch.num_groups
        crops, masks = network.crop_groups(batch)
        indices = batch["masked_indices"]
        if self.gram:
            count = num_global * batch["masks"].shape[2]
            indices = gram_teacher.every_patch(len(batch["masks"]), count)
        cls, patches = self.student.tokens(
            params, crops, masks, indices, drop_path_key, micro_batch
        )
        masked = patches
        if self.gram:
            masked = jnp.take_along_axis(
                patches, batch["masked_indices"][..., None], axis=1
            )
        images = num_global // 2
        heads = self.student.heads(params)
        terms, parts = {}, {}
        if self.dino_loss_weight:
            x, weights = heads["dino"](network.views_by_image(cls, images))
            pairs, normaliser = dino.crop_pairs(x.shape[2] - 2, self.views)
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
            views = cls[0].reshape(-1, 2, images, cls[0].shape[-1])
            per_view = jnp.sum(koleo.koleo_loss(views), axis=0) / num_groups
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
                patches.reshape(-1, num_global, *target.patches.shape[2:]),
                target.patches,
            )
            scale = target.weights / (num_groups * num_global)
            terms["gram"] = jnp.sum(scale * jnp.sum(by_crop, axis=1))
            parts["gram"] = terms["gram"]
        return sum(terms.values()), parts


def make_ssl_meta_arch(
    config: Any,
    dtype: Any,
    frozen: network.Network | None = None,
    view: teacher_view.TeacherView | None = None,
) -> SSLMetaArch:
    """Return self-distillation, or distillation, as a config describes it.

    Args:
      config: A checked config.
      dtype: Dtype of the matmuls.
      frozen: The network of a frozen teacher; None: the student's.
      view: Sizes at which the frozen teacher sees the student's crops, or None.
    """
    student = network.make_network(config, dtype)
    weights = {"dino": config.dino.loss_weight, "ibot": config.ibot.loss_weight}
    distilled: dict[str, Any] = {}
    if frozen is not None:
        distill = config.distill
        distilled["views"] = distill.views
        distilled["patches"] = patch_choice.PatchChoice(
            distill.patches, distill.patch_share
        )
    teacher = teacher_lib.Teacher(
        network=student if frozen is None else frozen,
        view=view,
        centering=config.train.centering,
        terms=tuple(term for term, weight in weights.items() if weight),
        queue=make_queue(config, student, dtype) if frozen is None else queue.Queue(),
    )
    return SSLMetaArch(
        student=student,
        teacher=teacher,
        dino_loss_weight=config.dino.loss_weight,
        koleo_loss_weight=config.dino.koleo_loss_weight,
        ibot_loss_weight=config.ibot.loss_weight,
        policy=policies.make_policy(config),
        **distilled,
        dino_local_loss_weight=config.dino.local_loss_weight,
        gram=gram_teacher.make_gram_teacher(config, student),
    )


def make_queue(config: Any, teacher: network.Network, dtype: Any) -> queue.Queue:
    """Return the queue of Sinkhorn-Knopp that a config describes.

    Args:
      config: The config of the run.
      teacher: The network whose bottlenecks are kept.
      dtype: Dtype of the bottlenecks.
    """
    groups, masked = batch_spec.batch_spec(config)["masked_indices"][0]
    ibot_head = teacher.ibot_head or teacher.dino_head
    images = groups, config.train.group_size, 2, teacher.dino_head.bottleneck_dim
    patches = groups, masked, 1, ibot_head.bottleneck_dim
    shapes = []
    if config.dino.loss_weight and config.dino.sinkhorn_queue:
        shapes.append(("dino", config.dino.sinkhorn_queue, images))
    if config.ibot.loss_weight and config.ibot.sinkhorn_queue and masked:
        shapes.append(("ibot", config.ibot.sinkhorn_queue, patches))
    return queue.Queue(tuple(shapes), dtype)
