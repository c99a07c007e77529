"""Distillation of features: regression of the teacher's tokens, without prototypes.

For teachers without projection heads, such as the released backbones. The student's
class token and all patches predict the teacher's, each by a linear layer; both see the
same crop. With masks left out, these are the two unmasked terms of Proteus (Zhang et
al., 2024, arXiv 2407.10366); the targets are standardised as in PHI-S (Ranzinger et
al., 2024, arXiv 2410.01680), whose rotation the mean squared error does not see.

Shapes: G groups, b images a group, M chosen patches of the global crops, D_S and D_T
the widths of student and teacher.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.augment import on_device, policies
from dinov2_jax.models import network, regression_head, stochastic_depth
from dinov2_jax.objectives import patch_choice, teacher_view

TERMS = ("cls", "patch")
Batch = dict[str, Any]
_EPS = 1e-6  # added to variances


@dataclasses.dataclass(frozen=True)
class RegressionNetwork(network.Network):
    """A backbone with regression heads {"cls_head", "patch_head"}.

    Attributes:
      head: The head of class token and patches, each with its own parameters.
    """

    head: regression_head.RegressionHead | None = None

    def init(self, key: jax.Array) -> network.Params:
        """Return new float32 parameters."""
        first, *rest = jax.random.split(key, 1 + len(TERMS))
        token = jnp.zeros((1, self.backbone.config.embed_dim))
        heads = {
            f"{term}_head": self.head.init(key, token)["params"]
            for term, key in zip(TERMS, rest)
        }
        return super().init(first) | heads


@dataclasses.dataclass(frozen=True)
class FeatureTeacher:
    """The source of the targets: standardised tokens of a frozen backbone.

    Mean and scale are measured on the first images of the run and then stay as they
    are. They belong to the run's state, so a resumed run has the same targets.

    Attributes:
      network: The backbone.
      standardize: "global" (one scale for all channels), "channel" or "none".
      calibration_images: Number of images whose features are measured.
      view: Sizes at which it sees the student's crops; None: the student's.
    """

    network: network.Network
    standardize: str
    calibration_images: int
    view: teacher_view.TeacherView | None = None

    def init_centers(self) -> dict[str, Any]:
        """Return the statistics of no images."""
        if self.standardize == "none":
            return {}
        zeros = jnp.zeros((self.network.backbone.config.embed_dim,))
        of_term = {"mean": zeros, "variance": zeros}
        return {"images": jnp.zeros(()), **{term: of_term for term in TERMS}}

    def targets(
        self, params: network.Params, centers: Any, batch: Batch, temp: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """Compute the targets {"cls": [G, 2b, D_T], "patch": [G, M, D_T]}.

        Args:
          params: The teacher's parameters.
          centers: Statistics of the features so far.
          batch: The batch, see `data/batch_builder.py`.
          temp: Not used.

        Returns:
          The targets in float32, and the statistics for the next step.
        """
        return self.assign(params, centers, self.outputs(params, batch), temp)

    def outputs(self, params: network.Params, batch: Batch) -> dict[str, jax.Array]:
        """Compute the teacher's tokens; groups do not affect each other."""
        cls, patches = teacher_view.tokens(self.network, params, batch, self.view)
        return {"cls": cls, "patch": patches, "valid": batch["masked_weights"] > 0}

    def assign(
        self, params: Any, centers: Any, outputs: dict[str, jax.Array], temp: Any
    ) -> tuple[dict[str, jax.Array], Any]:
        """Standardise the outputs of all groups; see `targets`."""
        del params, temp
        tokens = {term: outputs[term].astype(jnp.float32) for term in TERMS}
        if self.standardize == "none":
            return tokens, centers
        seen = centers["images"]
        images = tokens["cls"].shape[0] * tokens["cls"].shape[1] / 2
        is_open = seen < self.calibration_images
        new = {"images": jnp.where(is_open, seen + images, seen)}
        targets = {}
        for term, x in tokens.items():
            # Slots without a patch do not count.
            rows = outputs["valid"] if term == "patch" else jnp.ones(x.shape[:2], bool)
            merged = _merge(centers[term], x, rows, share=images / (seen + images))
            new[term] = jax.tree.map(
                lambda a, b: jnp.where(is_open, a, b), merged, centers[term]
            )
            variance = new[term]["variance"]
            if self.standardize == "global":
                variance = jnp.mean(variance)
            scale = jax.lax.rsqrt(variance + _EPS)
            targets[term] = (x - new[term]["mean"]) * scale
        return targets, new


def _merge(
    old: dict[str, jax.Array], x: jax.Array, valid: jax.Array, *, share: jax.Array
) -> dict[str, jax.Array]:
    """Return mean and variance [D] after rows x [G, R, D] that are `share` of all.

    Rows that are not `valid`, bool [G, R], do not count.
    """
    where = valid[..., None]
    mean = jnp.mean(x, axis=(0, 1), where=where)
    variance = jnp.var(x, axis=(0, 1), where=where)
    seen = jnp.any(valid)  # else there is nothing new
    mean = jnp.where(seen, mean, old["mean"])
    variance = jnp.where(seen, variance, old["variance"])
    shift = mean - old["mean"]
    return {
        "mean": old["mean"] + share * shift,
        "variance": old["variance"]
        + share * (variance - old["variance"])
        + share * (1 - share) * shift**2,
    }


@dataclasses.dataclass(frozen=True)
class FeatureRegression:
    """Pure functions of parameters and a batch, as those of `SSLMetaArch`.

    Attributes:
      student: The backbone and its regression heads.
      teacher: The source of the targets.
      cls_weight: Weight of the class tokens' loss.
      patch_weight: Weight of the patches' loss.
      kind: "mse", mean squared error, or "cosine", one minus the cosine similarity.
      policy: Augmentation of crops whose batch has `augmentation_keys`.
      patches: The patches of the loss.
    """

    student: RegressionNetwork
    teacher: FeatureTeacher
    cls_weight: float
    patch_weight: float
    kind: str
    policy: policies.Policy
    patches: patch_choice.PatchChoice
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
        batch = on_device.augment(batch, self.policy)
        return self.patches(batch, key, micro_batch)

    def loss(
        self,
        params: network.Params,
        targets: dict[str, jax.Array],
        batch: Batch,
        drop_path_key: jax.Array,
        micro_batch: stochastic_depth.MicroBatch | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Compute the student's loss.

        Args:
          params: The student's parameters.
          targets: The teacher's targets.
          batch: The batch, from `prepare`.
          drop_path_key: PRNG key of the stochastic-depth subsets.
          micro_batch: The groups of the batch that these are; None: all.

        Returns:
          The total and its weighted terms, `features_cls` and `features_patch`: means
          over crops, patches and channels.
        """
        crops = batch["global_crops"]
        num_groups, num_crops = crops.shape[:2]
        if micro_batch is not None:
            num_groups = micro_batch.num_groups
        (cls,), patches = self.student.tokens(
            params, [crops], [None], batch["masked_indices"], drop_path_key, micro_batch
        )
        weights = {"cls": jnp.ones(cls.shape[:2]), "patch": batch["masked_weights"]}
        parts = {}
        for term, x, factor in (
            ("cls", cls, self.cls_weight),
            ("patch", patches, self.patch_weight),
        ):
            if factor:
                head = {"params": params[f"{term}_head"]}
                error = _errors(
                    self.kind, self.student.head.apply(head, x), targets[term]
                )
                scale = factor / (num_groups * num_crops)
                parts[f"features_{term}"] = scale * jnp.sum(weights[term] * error)
        return sum(parts.values()), parts


def _errors(kind: str, x: jax.Array, target: jax.Array) -> jax.Array:
    """Return the error of each row of predictions and targets [..., D]: [...]."""
    if kind == "mse":
        return jnp.mean((x - target) ** 2, axis=-1)
    dot = jnp.sum(x * target, axis=-1)
    squares = jnp.sum(x * x, axis=-1) * jnp.sum(target * target, axis=-1)
    return 1 - dot * jax.lax.rsqrt(squares + _EPS)


def make_feature_regression(
    config: Any, dtype: Any, teacher: network.Network, view: Any
) -> FeatureRegression:
    """Return the distillation of features that a config describes.

    Args:
      config: A checked config.
      dtype: Dtype of the matmuls.
      teacher: The teacher's network.
      view: Sizes at which the teacher sees the student's crops, or None.
    """
    features = config.distill.features
    student = network.make_network(config, dtype)
    head = regression_head.RegressionHead(
        teacher.backbone.config.embed_dim, features.head, dtype
    )
    return FeatureRegression(
        student=RegressionNetwork(
            backbone=student.backbone,
            mean=student.mean,
            std=student.std,
            last_blocks=student.last_blocks,
            adapters=student.adapters,
            head=head,
        ),
        teacher=FeatureTeacher(
            teacher, features.standardize, features.calibration_images, view
        ),
        cls_weight=features.cls_weight,
        patch_weight=features.patch_weight,
        kind=features.loss,
        policy=policies.make_policy(config),
        patches=patch_choice.PatchChoice(
            config.distill.patches, config.distill.patch_share
        ),
    )
