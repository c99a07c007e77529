"""A backbone with a linear head, and the step that fine-tunes both.

The head sees the class token and the mean patch token after the last LayerNorm, as that
of transformers' `Dinov2ForImageClassification`.

Shapes: G groups, B images of a group, S pixels, C channels, D width, K classes.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov2_jax import optimizer, sharding, train_step
from dinov2_jax.eval.finetuning import adaptation as adaptation_lib
from dinov2_jax.eval.finetuning import mixing
from dinov2_jax.eval.finetuning import recipe as recipe_lib
from dinov2_jax.models import network, vision_transformer

_BETAS = 0.9, 0.999
_INITIAL_DEVIATION = 0.01


@flax.struct.dataclass
class State:
    """What a step changes.

    Attributes:
      params: {"backbone": the part that is trained, "head": {"kernel", "bias"}}.
      moments: AdamW's state.
      ema: Average of `params`; None without one.
    """

    params: Any
    moments: Any
    ema: Any


@dataclasses.dataclass(frozen=True)
class FineTuner:
    """Pure functions of a state and the parameters of the backbone that stay.

    Attributes:
      module: The backbone; its `dtype` is that of the matmuls.
      recipe: How it is trained.
      adaptation: What of it is trained.
      num_classes: Number of classes K.
      mean: Mean of each channel of the images, with values in [0, 1].
      std: Standard deviation of each channel.
    """

    module: vision_transformer.VisionTransformer
    recipe: recipe_lib.Recipe
    adaptation: adaptation_lib.Adaptation
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def init(self, backbone: Any) -> State:
        """Return the state before the first step.

        Args:
          backbone: Parameters of the backbone.
        """
        head_key, backbone_key = jax.random.split(jax.random.key(self.recipe.seed))
        shape = (2 * self.module.config.embed_dim, self.num_classes)
        head = {
            "kernel": _INITIAL_DEVIATION * jax.random.normal(head_key, shape),
            "bias": jnp.zeros(self.num_classes),
        }
        trained = self.adaptation.init(backbone_key, backbone)
        params = {"backbone": trained, "head": head}
        moments = self._optimizer(params).init(params)
        ema = jax.tree.map(jnp.array, params) if self.recipe.ema else None
        return State(params, moments, ema)

    def merge(self, backbone: Any, params: Any) -> Any:
        """Return {"backbone", "head"} with all parameters of the backbone.

        Args:
          backbone: Its parameters before the fine-tuning, those of `adaptation.kept`.
          params: `State.params` or `State.ema`.
        """
        merged = self.adaptation.merge(backbone, params["backbone"])
        return {"backbone": merged, "head": params["head"]}

    def logits(
        self, params: Any, images: jax.Array, drop_path_key: jax.Array | None = None
    ) -> jax.Array:
        """Return the classes' scores, float32 [G, B, K].

        Args:
          params: All parameters, from `merge`.
          images: Normalised images, [G, B, S, S, C].
          drop_path_key: PRNG key of stochastic depth; None drops nothing.
        """
        module = self.module.clone(drop_path_rate=self.recipe.drop_path)
        (features,) = module.apply(
            {"params": params["backbone"]},
            [images],
            [None],
            drop_path_key,
            method="forward_crops",
        )
        patches = features.patches.astype(jnp.float32).mean(axis=(2, 3))
        x = jnp.concatenate([features.cls.astype(jnp.float32), patches], axis=-1)
        return x @ params["head"]["kernel"] + params["head"]["bias"]

    def loss(
        self,
        params: Any,
        backbone: Any,
        images: jax.Array,
        labels: jax.Array,
        step: Any,
    ) -> jax.Array:
        """Return the mean cross entropy of a batch, augmented as the recipe says.

        Args:
          params: `State.params`.
          backbone: Parameters of the backbone that stay, from `adaptation.kept`.
          images: Images, uint8 or normalised, [G, B, S, S, C].
          labels: Labels, int [G, B].
          step: Number of the step, from 0; gives the randomness.
        """
        recipe = self.recipe
        key = jax.random.fold_in(jax.random.key(recipe.seed), step)
        mix_key, drop_path_key = jax.random.split(key)
        images = network.normalize(images, self.mean, self.std)
        targets = mixing.smooth_labels(
            labels, num_classes=self.num_classes, smoothing=recipe.smoothing
        )
        mix = functools.partial(
            mixing.mix,
            mixup_alpha=recipe.mixup_alpha,
            cutmix_alpha=recipe.cutmix_alpha,
        )
        keys = jax.random.split(mix_key, len(images))
        images, targets = jax.vmap(mix)(keys, images, targets)
        images = sharding.constrain_batch(images)
        scores = self.logits(self.merge(backbone, params), images, drop_path_key)
        return -(targets * jax.nn.log_softmax(scores)).sum(axis=-1).mean()

    def step(
        self,
        state: State,
        backbone: Any,
        images: jax.Array,
        labels: jax.Array,
        scalars: dict[str, Any],
    ) -> tuple[State, jax.Array]:
        """Train for one step.

        Args:
          state: The state before it.
          backbone: Parameters of the backbone that stay, from `adaptation.kept`.
          images: Images, uint8 or normalised, [G, B, S, S, C].
          labels: Labels, int [G, B].
          scalars: What changes with the step, from `scalars`.

        Returns:
          The next state, and the loss before the step.
        """
        loss, grads = jax.value_and_grad(self.loss)(
            state.params, backbone, images, labels, scalars["step"]
        )
        grads = sharding.constrain_state(grads)
        rates = dict.fromkeys(("lr", "backbone_lr", "last_layer_lr"), scalars["lr"])
        updates, moments = self._optimizer(state.params).update(
            grads,
            state.moments,
            state.params,
            scalars=rates | {"weight_decay": self.recipe.weight_decay},
            norms=optimizer.submodule_norms(grads),
        )
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = train_step.ema(ema, params, scalars["ema"])
        return State(params, moments, ema), loss

    def scalars(self, step: int) -> dict[str, Any]:
        """Return what changes with the step besides state and batch."""
        return {
            "step": np.int32(step),
            "lr": np.float32(self.recipe.lr_at(step)),
            "ema": np.float32(self.recipe.ema_at(step)),
        }

    def _optimizer(self, params: Any) -> optax.GradientTransformationExtraArgs:
        groups = optimizer.param_groups(
            params,
            layerwise_decay=self.recipe.layerwise_decay,
            patch_embed_lr_mult=1.0,
        )
        return optimizer.with_param_groups(
            optimizer.scale_by_adam(*_BETAS), groups, clip_grad=self.recipe.clip_grad
        )


def at_size(
    module: vision_transformer.VisionTransformer, params: Any, size: int
) -> tuple[vision_transformer.VisionTransformer, Any]:
    """Resample position embeddings once, to the images of the fine-tuning.

    So they are learned as they are used, and libraries that interpolate in other ways
    agree at this size.

    Args:
      module: The backbone.
      params: Its parameters.
      size: Side of the images, px.
    """
    if size == module.config.image_size:
        return module, params
    positions = module.apply(
        {"params": params}, size, size, method="position_embeddings"
    )
    module = module.clone(config=module.config.replace(image_size=size))
    return module, params | {"pos_embed": positions}
