"""SimDINO: the student, its teacher and the losses without prototypes.

Mirrors SimDINOv2 (arXiv 2502.10385): the crops, pairs and masked patches of
`ssl_meta_arch.py`, but the teacher's targets are its features of unit length, and the
losses are half squared distances, less the coding rate of the student's class tokens.
There are no prototypes, temperatures, centres or KoLeo.

The covariance in the coding rate is that of the b images of one group, for each of the
two global views apart; rates are averaged over views and groups. So groups stay
independent: results do not depend on the number of devices, and whole groups may be
computed apart. The paper writes the covariance of a batch. The authors' code takes each
view apart, over the images of one GPU by default and over all GPUs by an option; use
one group, `train.group_size = train.batch_size`, for the latter.

Shapes: G groups, b images a group, L local crops, M masked-patch slots, C channels of
the heads' outputs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax import sharding
from dinov2_jax.augment import on_device, policies
from dinov2_jax.losses import coding_rate, dino
from dinov2_jax.models import network, stochastic_depth

Batch = dict[str, jax.Array]
Features = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class FeatureTeacher:
    """The source of the targets, pure functions of parameters and a batch.

    Attributes:
      network: The backbone and heads.
      terms: Loss terms that need targets, from "dino" and "ibot".
    """

    network: network.Network
    terms: tuple[str, ...] = ("dino", "ibot")

    def init_centers(self) -> dict[str, jax.Array]:
        """Return nothing: these targets keep nothing from step to step."""
        return {}

    def targets(
        self,
        params: network.Params,
        centers: dict[str, jax.Array],
        batch: Batch,
        temp: jax.Array | float,
    ) -> tuple[Features, dict[str, jax.Array]]:
        """Compute the features of the unmasked global crops.

        Args:
          params: The teacher's parameters.
          centers: What `init_centers` returned.
          batch: The batch, see `data/batch_builder.py`.
          temp: The teacher's temperature, which has no effect here.

        Returns:
          Features of the terms in use, {"dino": [G, b, 2, C], "ibot": [G, M, C]}, and
          `centers`.
        """
        return self.assign(params, centers, self.outputs(params, batch), temp)

    def outputs(self, params: network.Params, batch: Batch) -> Features:
        """Compute the features; groups do not affect each other."""
        (cls,), masked = self.network.tokens(
            params, [batch["global_crops"]], [None], batch["masked_indices"]
        )
        heads = self.network.heads(params)
        features = {}
        if "dino" in self.terms:
            features["dino"], _ = heads["dino"](network.by_image(cls, 2))
        if "ibot" in self.terms and masked.shape[1]:
            features["ibot"], _ = heads["ibot"](masked)
        return features

    def assign(
        self,
        params: network.Params,
        centers: dict[str, jax.Array],
        outputs: Features,
        temp: jax.Array | float,
    ) -> tuple[Features, dict[str, jax.Array]]:
        """Return the outputs of all groups as the targets; see `targets`."""
        del params, temp
        return outputs, centers


@dataclasses.dataclass(frozen=True)
class CodingRateArch:
    """Pure functions of parameters and a batch, with the modules and loss weights.

    Attributes:
      student: The backbone and heads that are trained; the heads have no prototypes.
      teacher: The source of the targets.
      dino_loss_weight: Weight of the class tokens' distances and coding rate.
      coding_rate_weight: Factor of the coding rate besides its gamma.
      ibot_loss_weight: Weight of the masked patches' distances.
      eps: Distance up to which features count as equal in the coding rate.
      policy: Augmentation of crops whose batch has `augmentation_keys`.
    """

    student: network.Network
    teacher: FeatureTeacher
    dino_loss_weight: float
    coding_rate_weight: float
    ibot_loss_weight: float
    eps: float
    policy: policies.Policy = policies.POLICIES["rgb"]
    gram: None = None  # anchoring is for pretraining with prototypes

    def init_centers(self, params: network.Params) -> dict[str, Any]:
        """Return what the targets keep from step to step, at step 0."""
        del params
        return self.teacher.init_centers()

    def prepare(
        self,
        batch: Batch,
        key: jax.Array,
        micro_batch: stochastic_depth.MicroBatch | None = None,
    ) -> Batch:
        """Return the batch as teacher and student take it."""
        del key, micro_batch
        return on_device.augment(batch, self.policy)

    def loss(
        self,
        params: network.Params,
        targets: Features,
        batch: Batch,
        drop_path_key: jax.Array,
        micro_batch: stochastic_depth.MicroBatch | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Compute the student's loss.

        Args:
          params: The student's parameters.
          targets: The teacher's features.
          batch: The batch, see `data/batch_builder.py`; crops may be uint8.
          drop_path_key: PRNG key of the stochastic-depth subsets.
          micro_batch: The groups of the batch that these are; None: all.

        Returns:
          The total and its weighted terms: `dino_local`, `dino_global`, `coding_rate`
          (below 0) and `ibot`. With random features distances are near 1; a masked
          patch weighs as in iBOT, so `ibot` is then near the share of masked crops.
        """
        num_groups, num_global = batch["global_crops"].shape[:2]
        if micro_batch is not None:
            num_groups = micro_batch.num_groups
        crops, masks = network.crop_groups(batch)
        cls, masked = self.student.tokens(
            params, crops, masks, batch["masked_indices"], drop_path_key, micro_batch
        )
        images = num_global // 2
        heads = self.student.heads(params)
        x, _ = heads["dino"](network.views_by_image(cls, images))  # [G, b, 2 + L, C]
        pairs, _ = dino.crop_pairs(num_local=x.shape[2] - 2)
        by_crop = coding_rate.paired_distance(x, targets["dino"], pairs)
        num_pairs = sum(map(len, pairs))
        by_crop *= self.dino_loss_weight / (num_groups * images * num_pairs)
        gamma = coding_rate.balance(images, x.shape[-1])
        scale = self.dino_loss_weight * self.coding_rate_weight * gamma
        parts: dict[str, Any] = {
            "dino_local": jnp.sum(by_crop[2:]),
            "dino_global": jnp.sum(by_crop[:2]),
            "coding_rate": -scale * jnp.sum(self._rates(x[:, :, :2])) / num_groups,
        }
        if "ibot" in targets:
            x, _ = heads["ibot"](masked)
            distances = coding_rate.half_squared_distance(x, targets["ibot"])
            scale = self.ibot_loss_weight / (num_groups * num_global)
            parts["ibot"] = scale * jnp.sum(distances * batch["masked_weights"])
        return sum(parts.values()), parts

    def _rates(self, features: jax.Array) -> jax.Array:
        """Return each group's coding rate, [G], the mean of its views' [G, b, 2, C]."""

        def rates(features, *, axes):
            del axes
            views = features.swapaxes(1, 2)
            return jnp.mean(coding_rate.coding_rate(views, eps=self.eps), axis=1)

        return sharding.on_groups(
            rates,
            in_specs=(sharding.BATCH,),
            out_specs=sharding.BATCH,
            num_groups=len(features),
        )(features)


def make_coding_rate_arch(config: Any, dtype: Any) -> CodingRateArch:
    """Return SimDINO as a config describes it, with matmuls in `dtype`."""
    student = network.make_network(config, dtype)
    terms = ("dino", "ibot") if config.ibot.loss_weight else ("dino",)
    return CodingRateArch(
        student=student,
        teacher=FeatureTeacher(student, terms),
        dino_loss_weight=config.dino.loss_weight,
        coding_rate_weight=config.coding_rate.weight,
        ibot_loss_weight=config.ibot.loss_weight,
        eps=config.coding_rate.eps,
        policy=policies.make_policy(config),
    )
