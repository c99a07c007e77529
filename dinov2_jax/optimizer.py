"""The optimizer, with clipping per submodule and multipliers for every parameter.

An optax transformation around any of `DIRECTIONS`, whose state it has. Mirrors the
reference's `utils/param_groups.py` and `train/train.py`. Learning rate and weight decay
are passed to every update, from `schedules`.
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
    """Multipliers of the schedules for one parameter.

    Attributes:
      lr_multiplier: Factor of the learning rate; float64 [depth] for a stacked block
        parameter.
      wd_multiplier: Factor of the weight decay, 0.0 or 1.0.
      is_last_layer: Whether to use `last_layer_lr` (0 while the layer is frozen).
      is_backbone: Whether to use `backbone_lr` (0 while only the heads learn); also of
        adapters of the backbone.
    """

    lr_multiplier: float | np.ndarray
    wd_multiplier: float
    is_last_layer: bool
    is_backbone: bool


def param_groups(
    params: Any,
    *,
    layerwise_decay: float,
    patch_embed_lr_mult: float,
    trainable: str = "all",
    last_blocks: int = 0,
) -> Any:
    """Return a tree like `params` with a `ParamGroup` at every leaf.

    Args:
      params: {"backbone", "dino_head", ...} of arrays or shapes, blocks stacked.
      layerwise_decay: Base of the learning rate's factor, which is layerwise_decay **
        (depth + 1 - layer) where embeddings are layer 0 and block i is layer i + 1;
        the final norm and the heads have factor 1.
      patch_embed_lr_mult: Additional factor for the patch embedding.
      trainable: Part of the backbone that learns: "all", "last" (its last blocks and
        its last norm) or "lora" (adapters, {"lora"} beside it, with factor 1). The rest
        has factor 0.
      last_blocks: Number of blocks that learn if `trainable` is "last".
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
            if trainable == "lora" or (trainable == "last" and names[1] in _EMBEDDINGS):
                lr_multiplier = 0.0
            elif trainable == "last" and names[1] == "blocks":
                lr_multiplier[: depth - last_blocks] = 0.0
        undecayed = names[-1] in ("bias", "gamma") or any("norm" in n for n in names)
        return ParamGroup(
            lr_multiplier=lr_multiplier,
            wd_multiplier=0.0 if undecayed else 1.0,
            is_last_layer="last_layer" in names,
            is_backbone=names[0] in ("backbone", "lora"),
        )

    return jax.tree_util.tree_map_with_path(group, params)


def submodule_norms(grads: dict[str, Any]) -> dict[str, jax.Array]:
    """Return the L2 norm of each submodule's gradients (backbone, dino_head, ...)."""
    return {name: optax.tree.norm(tree) for name, tree in grads.items()}


def clip_factors(norms: dict[str, jax.Array], max_norm: float) -> dict[str, jax.Array]:
    """Return the factor for each submodule's gradients, as in torch's clip_grad_norm_.

    The factor is min(1, max_norm / (norm + 1e-6)), or 1 if `max_norm` is 0. optax's
    clips lack the 1e-6.
    """
    if not max_norm:
        return {name: jnp.ones_like(norm) for name, norm in norms.items()}
    return {k: jnp.minimum(1.0, max_norm / (n + 1e-6)) for k, n in norms.items()}


def scale_by_adam(
    b1: float, b2: float, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return `optax.scale_by_adam` with a bias correction exact in float32.

    Args:
      b1: Decay of the first moment, in [0, 1).
      b2: Decay of the second moment, in [0, 1).
      eps: Constant added to the root of the second moment.
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
    """Return 1 - decay**count, accurate in float32.

    Evaluated as written in float32, as optax does, it is off by 1e-5 for 0.999 at
    every step; torch computes it in double.
    """
    return -jnp.expm1(count * math.log(decay)) if decay else 1.0


# `optim.name` -> function from `config.optim` to the gradients -> directions part.
DIRECTIONS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adamw": lambda optim: scale_by_adam(optim.adamw_beta1, optim.adamw_beta2),
}


def with_param_groups(
    direction: optax.GradientTransformation, groups: Any, *, clip_grad: float
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer with a learning rate and weight decay for each parameter.

    A learning rate of 0 leaves its parameters bit-identical, without decay, while the
    direction's moments are still updated. A submodule whose multipliers are all 0 has
    no moments.

    Args:
      direction: Transformation of clipped gradients into directions; its state is the
        optimizer's state.
      groups: Tree of `ParamGroup` with the structure of the parameters.
      clip_grad: Maximum norm of a submodule's gradients; 0 turns clipping off.

    Returns:
      A transformation whose `update` takes `scalars` (lr, backbone_lr, last_layer_lr,
      weight_decay) and `norms` (`submodule_norms` of the gradients) by keyword.
    """

    is_group = lambda x: isinstance(x, ParamGroup)  # noqa: E731
    frozen = {
        name
        for name, tree in groups.items()
        if not any(
            np.any(group.lr_multiplier)
            for group in jax.tree.leaves(tree, is_leaf=is_group)
        )
    }

    def learning(tree):
        return {name: part for name, part in tree.items() if name not in frozen}

    def update(grads, state, params, *, scalars, norms, **extra_args):
        del extra_args
        factors = clip_factors(norms, clip_grad)
        clipped = {
            name: jax.tree.map(lambda g, f=factors[name]: g * f, tree)
            for name, tree in learning(grads).items()
        }
        directions, state = direction.update(clipped, state, learning(params))

        def leaf(group, direction, p):
            rate = scalars["backbone_lr" if group.is_backbone else "lr"]
            if group.is_last_layer:
                rate = scalars["last_layer_lr"]
            rate = rate * np.asarray(group.lr_multiplier, np.float32)
            rate = rate.reshape(rate.shape + (1,) * (p.ndim - rate.ndim))
            decay = scalars["weight_decay"] * group.wd_multiplier
            return -rate * (direction + decay * p)

        updates = jax.tree.map(
            leaf, learning(groups), directions, learning(params), is_leaf=is_group
        )
        zeros = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in frozen}
        return updates | zeros, state

    def init(params):
        return direction.init(learning(params))

    return optax.GradientTransformationExtraArgs(init, update)


def make_optimizer(config: Any, params: Any) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer that `config.optim` describes.

    Args:
      config: The config of the run.
      params: Tree of the parameters, arrays or shapes.
    """
    groups = param_groups(
        params,
        layerwise_decay=config.optim.layerwise_decay,
        patch_embed_lr_mult=config.optim.patch_embed_lr_mult,
        trainable=config.optim.trainable,
        last_blocks=config.optim.last_blocks,
    )
    direction = DIRECTIONS[config.optim.name](config.optim)
    return with_param_groups(direction, groups, clip_grad=config.optim.clip_grad)
