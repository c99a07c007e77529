"""The optimizer: clip per submodule, AdamW with a multiplier for every parameter, EMA.

Mirrors the reference's `utils/param_groups.py` and `train/train.py`. Learning rate and
weight decay arrive with every update, from `schedules`. The state is optax's.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_EMBEDDINGS = {
    "cls_token",
    "pos_embed",
    "mask_token",
    "register_tokens",
    "patch_embed",
}


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """What multiplies the schedules for one parameter.

    Attributes:
      lr_multiplier: Float, or float64 [depth] for a stacked block parameter.
      wd_multiplier: 0.0 or 1.0.
      is_last_layer: Follows the last layer's learning rate (0 while frozen).
      is_backbone: Follows the backbone's (0 while only the heads learn).
    """

    lr_multiplier: float | np.ndarray
    wd_multiplier: float
    is_last_layer: bool
    is_backbone: bool


def param_groups(
    params: Any, *, layerwise_decay: float, patch_embed_lr_mult: float
) -> Any:
    """A tree like `params` with a `ParamGroup` at every leaf.

    Args:
      params: {"backbone", "dino_head", ...} of arrays or shapes, blocks stacked.
      layerwise_decay: decay ** (depth + 1 - layer); embeddings are layer 0, block i
        is layer i + 1, the final norm and the heads are not decayed.
      patch_embed_lr_mult: Further factor for the patch embedding.
    """
    depth = jax.tree.leaves(params["backbone"]["blocks"])[0].shape[0]

    def group(path, leaf):
        del leaf
        names = [k.key for k in path]
        lr_multiplier = 1.0
        if names[0] == "backbone":
            if names[1] in _EMBEDDINGS:
                lr_multiplier = layerwise_decay ** (depth + 1)
            elif names[1] == "blocks":
                layer = range(1, depth + 1)
                decays = [layerwise_decay ** (depth + 1 - i) for i in layer]
                lr_multiplier = np.array(decays)
            if names[1] == "patch_embed":
                lr_multiplier *= patch_embed_lr_mult
        undecayed = names[-1] in ("bias", "gamma") or any("norm" in n for n in names)
        return ParamGroup(
            lr_multiplier=lr_multiplier,
            wd_multiplier=0.0 if undecayed else 1.0,
            is_last_layer="last_layer" in names,
            is_backbone=names[0] == "backbone",
        )

    return jax.tree_util.tree_map_with_path(group, params)


def submodule_norms(grads: dict[str, Any]) -> dict[str, jax.Array]:
    """L2 norm of the gradients of each submodule (backbone, dino_head, ibot_head)."""
    return {name: optax.tree.norm(tree) for name, tree in grads.items()}


def clip_factors(norms: dict[str, jax.Array], max_norm: float) -> dict[str, jax.Array]:
    """What scales each submodule's gradients, as torch's `clip_grad_norm_` does.

    The factor is min(1, max_norm / (norm + 1e-6)), which optax's clips lack; 1 where
    `max_norm` is 0.
    """
    if not max_norm:
        return {name: jnp.ones_like(norm) for name, norm in norms.items()}
    return {k: jnp.minimum(1.0, max_norm / (n + 1e-6)) for k, n in norms.items()}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW and the EMA teacher, one pass over gradients, moments and both weights.

    Attributes:
      groups: Tree of `ParamGroup` like the parameters.
      clip_grad: Greatest norm of a submodule's gradients; 0 does not clip.
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the root of the second moment.
    """

    groups: Any
    clip_grad: float
    b1: float
    b2: float
    eps: float = 1e-8

    def init(self, params: Any) -> optax.OptState:
        """Moments of 0."""
        return optax.scale_by_adam().init(params)

    def update(
        self,
        grads: Any,
        state: optax.ScaleByAdamState,
        params: Any,
        teacher_params: Any,
        scalars: dict[str, jax.Array],
        *,
        norms: dict[str, jax.Array],
        finite: jax.Array | bool = True,
    ) -> tuple[optax.ScaleByAdamState, Any, Any]:
        """One step: clip, moments, decoupled weight decay, EMA.

        A rate of 0 stops update and decay of its parameters, to the bit; a student
        that rests leaves the teacher where it is once they are equal.

        Args:
          grads: Tree like `params`.
          state: Of the step before.
          params: The student's.
          teacher_params: EMA of `params`.
          scalars: lr, backbone_lr, last_layer_lr, weight_decay, momentum_teacher.
          norms: `submodule_norms` of the gradients.
          finite: Where False everything stays as it is.

        Returns:
          The new state, student and teacher.
        """
        count = optax.safe_increment(state.count)
        shared = {
            "mu_scale": _bias_correction(self.b1, count),
            "nu_scale": _bias_correction(self.b2, count),
            "teacher_rate": 1.0 - scalars["momentum_teacher"],
            "finite": finite,
        }
        factors = clip_factors(norms, self.clip_grad)

        def leaf(path, group, *arrays):
            rate = scalars["backbone_lr" if group.is_backbone else "lr"]
            if group.is_last_layer:
                rate = scalars["last_layer_lr"]
            return self._elementwise(
                *arrays,
                rate=rate * np.asarray(group.lr_multiplier, np.float32),
                clip=factors[path[0].key],
                decay=scalars["weight_decay"] * group.wd_multiplier,
                **shared,
            )

        trees = (grads, state.mu, state.nu, params, teacher_params)
        is_group = lambda x: isinstance(x, ParamGroup)  # noqa: E731
        new = jax.tree_util.tree_map_with_path(
            leaf, self.groups, *trees, is_leaf=is_group
        )
        new = jax.tree.transpose(
            jax.tree.structure(self.groups, is_leaf=is_group),
            jax.tree.structure((0,) * 4),
            new,
        )
        mu, nu, params, teacher_params = new
        count = jnp.where(finite, count, state.count)
        return optax.ScaleByAdamState(count, mu, nu), params, teacher_params

    def _elementwise(
        self,
        grad,
        mu,
        nu,
        p,
        teacher,
        *,
        rate,
        clip,
        decay,
        mu_scale,
        nu_scale,
        teacher_rate,
        finite,
    ):
        """All that is new of one parameter: mu, nu, p, teacher."""
        old = (mu, nu, p, teacher)
        rate = rate.reshape(rate.shape + (1,) * (p.ndim - rate.ndim))
        grad = grad * clip
        mu = self.b1 * mu + (1 - self.b1) * grad
        nu = self.b2 * nu + (1 - self.b2) * (grad * grad)
        direction = (mu / mu_scale) / (jnp.sqrt(nu / nu_scale) + self.eps)
        p = p - rate * (direction + decay * p)
        # Not as m * t + (1 - m) * p, whose rounding moves a teacher at rest.
        teacher = teacher + teacher_rate * (p - teacher)
        new = (mu, nu, p, teacher)
        return tuple(jnp.where(finite, n, o) for n, o in zip(new, old))


def _bias_correction(decay: float, count: jax.Array) -> jax.Array | float:
    """1 - decay**count, exactly.

    In float32 as written, as optax has it, it is off by 1e-5 for 0.999 at every step;
    torch computes it in double.
    """
    return -jnp.expm1(count * math.log(decay)) if decay else 1.0


def make_optimizer(config: Any, params: Any) -> Optimizer:
    """The optimizer of `config.optim` for a tree like `params` (arrays or shapes)."""
    groups = param_groups(
        params,
        layerwise_decay=config.optim.layerwise_decay,
        patch_embed_lr_mult=config.optim.patch_embed_lr_mult,
    )
    return Optimizer(
        groups=groups,
        clip_grad=config.optim.clip_grad,
        b1=config.optim.adamw_beta1,
        b2=config.optim.adamw_beta2,
    )
