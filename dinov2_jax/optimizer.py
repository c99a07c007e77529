"""The optimizer: clip per submodule, and multipliers for every parameter.

An optax transformation, for any of `DIRECTIONS`. Mirrors the reference's
`utils/param_groups.py` and `train/train.py`. Learning rate and weight decay arrive with
every update, from `schedules`. The state is that of the direction.
"""

import dataclasses
import math
from collections.abc import Callable
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


def scale_by_adam(
    b1: float, b2: float, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Returns `optax.scale_by_adam` with a bias correction exact in float32.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Added to the root of the second moment.
    """

    def update(grads, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (g * g), state.nu, grads)
        mu_scale, nu_scale = _bias_correction(b1, count), _bias_correction(b2, count)
        directions = jax.tree.map(
            lambda m, v: (m / mu_scale) / (jnp.sqrt(v / nu_scale) + eps), mu, nu
        )
        return directions, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2).init, update)


def _bias_correction(decay: float, count: jax.Array) -> jax.Array | float:
    """Returns 1 - decay**count, exactly.

    In float32 as written, as optax has it, it is off by 1e-5 for 0.999 at every step;
    torch computes it in double.
    """
    return -jnp.expm1(count * math.log(decay)) if decay else 1.0


# `optim.name` -> gradients to directions, from `config.optim`.
DIRECTIONS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adamw": lambda optim: scale_by_adam(optim.adamw_beta1, optim.adamw_beta2),
}


def with_param_groups(
    direction: optax.GradientTransformation, groups: Any, *, clip_grad: float
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer with a learning rate and weight decay for each parameter.

    A rate of 0 stops update and decay of its parameters, to the bit, while the
    direction's moments move on.

    Args:
      direction: Turns clipped gradients into directions; its state is the optimizer's.
      groups: Tree of `ParamGroup` like the parameters.
      clip_grad: Greatest norm of a submodule's gradients; 0 does not clip.

    Returns:
      A transformation whose `update` takes `scalars` (lr, backbone_lr, last_layer_lr,
      weight_decay) and `norms` (`submodule_norms` of the gradients) by keyword.
    """

    def update(grads, state, params, *, scalars, norms, **extra_args):
        del extra_args
        factors = clip_factors(norms, clip_grad)
        clipped = {
            name: jax.tree.map(lambda g, f=factors[name]: g * f, tree)
            for name, tree in grads.items()
        }
        directions, state = direction.update(clipped, state, params)

        def leaf(group, direction, p):
            rate = scalars["backbone_lr" if group.is_backbone else "lr"]
            if group.is_last_layer:
                rate = scalars["last_layer_lr"]
            rate = rate * np.asarray(group.lr_multiplier, np.float32)
            rate = rate.reshape(rate.shape + (1,) * (p.ndim - rate.ndim))
            decay = scalars["weight_decay"] * group.wd_multiplier
            return -rate * (direction + decay * p)

        is_group = lambda x: isinstance(x, ParamGroup)  # noqa: E731
        updates = jax.tree.map(leaf, groups, directions, params, is_leaf=is_group)
        return updates, state

    return optax.GradientTransformationExtraArgs(direction.init, update)


def make_optimizer(config: Any, params: Any) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of `config.optim`.

    Args:
      config: A config.
      params: Tree of the parameters, arrays or shapes.
    """
    groups = param_groups(
        params,
        layerwise_decay=config.optim.layerwise_decay,
        patch_embed_lr_mult=config.optim.patch_embed_lr_mult,
    )
    direction = DIRECTIONS[config.optim.name](config.optim)
    return with_param_groups(direction, groups, clip_grad=config.optim.clip_grad)
