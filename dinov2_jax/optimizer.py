"""The optimizer: clip per submodule, AdamW with a multiplier for every parameter.

Mirrors the reference's `utils/param_groups.py` and `train/train.py`. Learning rate and
weight decay arrive with every update as extra arguments, from `schedules`.
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


def clip_by_submodule_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips each submodule's gradients as torch's `clip_grad_norm_` does.

    The factor is min(1, max_norm / (norm + 1e-6)), which optax's clips lack.
    """

    def update(grads, state, params=None):
        del params
        norms = submodule_norms(grads)
        factors = {k: jnp.minimum(1.0, max_norm / (n + 1e-6)) for k, n in norms.items()}
        return {
            name: jax.tree.map(lambda g: g * factors[name], tree)  # noqa: B023
            for name, tree in grads.items()
        }, state

    return optax.GradientTransformation(optax.init_empty_state, update)


def scale_by_schedule_and_groups(groups: Any) -> optax.GradientTransformationExtraArgs:
    """Decoupled weight decay and learning rate, both per parameter.

    update = -lr * lr_multiplier * (update + weight_decay * wd_multiplier * param), with
    lr, backbone_lr, last_layer_lr and weight_decay as extra arguments of `update`. A
    rate of 0 stops both for its parameters, to the bit.
    """

    def update(
        updates,
        state,
        params=None,
        *,
        lr,
        backbone_lr,
        last_layer_lr,
        weight_decay,
        **extra,
    ):
        del extra

        def scale(group, u, p):
            rate = backbone_lr if group.is_backbone else lr
            rate = last_layer_lr if group.is_last_layer else rate
            multiplier = np.asarray(group.lr_multiplier, np.float32)
            multiplier = multiplier.reshape(multiplier.shape + (1,) * (p.ndim - 1))
            if multiplier.ndim != p.ndim:  # one factor for the whole parameter
                multiplier = multiplier.reshape(())
            decay = weight_decay * group.wd_multiplier
            return -(rate * multiplier) * (u + decay * p)

        is_group = lambda x: isinstance(x, ParamGroup)  # noqa: E731
        return jax.tree.map(scale, groups, updates, params, is_leaf=is_group), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction with an exact bias correction.

    `optax.scale_by_adam` computes 1 - b2**count in float32, which for b2 = 0.999 is off
    by about 1e-5 at every step; torch computes it in double. Same state as optax's.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the root of the second moment.
    """
    base = optax.scale_by_adam(b1, b2, eps)

    def correction(decay, count):
        return -jnp.expm1(count * math.log(decay)) if decay else 1.0

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        mu_scale, nu_scale = correction(b1, count), correction(b2, count)
        direction = jax.tree.map(
            lambda m, v: (m / mu_scale) / (jnp.sqrt(v / nu_scale) + eps), mu, nu
        )
        return direction, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(base.init, update)


def make_optimizer(config: Any, params: Any) -> optax.GradientTransformationExtraArgs:
    """The chain of `config.optim` for a tree like `params` (arrays or shapes)."""
    groups = param_groups(
        params,
        layerwise_decay=config.optim.layerwise_decay,
        patch_embed_lr_mult=config.optim.patch_embed_lr_mult,
    )
    clip = config.optim.clip_grad
    return optax.chain(
        clip_by_submodule_norm(clip) if clip else optax.identity(),
        scale_by_adam(config.optim.adamw_beta1, config.optim.adamw_beta2, 1e-8),
        scale_by_schedule_and_groups(groups),
    )
