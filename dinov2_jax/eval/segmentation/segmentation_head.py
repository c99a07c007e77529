"""Linear segmentation head: batch norm and a linear layer for each patch.

Mirrors the reference's `eval/segmentation/models/decode_heads/linear_head.py` (BNHead)
and mmseg's cross entropy. Parameters are a flat dict under the names and in the layout
of the released files, without the prefix `decode_head.`.

Shapes: B images, h x w patches, D width of all features together, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.eval.dense import dense_features, dense_resize

IGNORE = 255  # label of pixels that do not count
DENOMINATORS = ("all", "valid")
_EPSILON = 1e-5
_MOMENTUM = 0.1
STATISTICS = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")

Params = dict[str, jax.Array]


def init(seed: int, width: int, num_classes: int) -> Params:
    """Return the parameters of a new head: small weights and zero biases.

    Args:
      seed: Seed of the weights.
      width: Width D of the features.
      num_classes: Number of classes K.
    """
    weight = 0.01 * jax.random.normal(jax.random.key(seed), (num_classes, width, 1, 1))
    return {
        "conv_seg.weight": weight,
        "conv_seg.bias": jnp.zeros(num_classes),
        "bn.weight": jnp.ones(width),
        "bn.bias": jnp.zeros(width),
        "bn.running_mean": jnp.zeros(width),
        "bn.running_var": jnp.ones(width),
        "bn.num_batches_tracked": jnp.zeros((), jnp.int32),
    }


def joined(maps: Sequence[jax.Array]) -> jax.Array:
    """Concatenate patch features of several blocks, resized to the first one's grid."""
    grid = maps[0].shape[1:3]
    return jnp.concatenate([dense_resize.bilinear(x, grid) for x in maps], axis=-1)


def backbone_features(module: Any, layers: int) -> Any:
    """Return the function from parameters and images to the head's features.

    Args:
      module: The backbone.
      layers: Number of last blocks whose patch features are joined.
    """
    blocks = dense_features.last_blocks(module.config.depth, layers)

    def compute(params, images):
        taps = dense_features.dense_features(
            module, params, images, blocks=blocks, norm=True
        )
        return joined([patches for patches, _ in taps])

    return compute


def logits(params: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
    """Compute logits with the running statistics of the batch norm.

    Args:
      params: Parameters of the head.
      features: Features, [B, h, w, D].

    Returns:
      [B, h, w, K].
    """
    return _apply(params, features, params["bn.running_mean"], params["bn.running_var"])


def train_logits(
    params: Mapping[str, jax.Array], features: jax.Array
) -> tuple[jax.Array, Params]:
    """Compute logits with the statistics of the whole batch, over all devices.

    Args:
      params: Parameters of the head.
      features: Features, [B, h, w, D].

    Returns:
      Logits [B, h, w, K], and the new running statistics (unbiased variance).
    """
    mean = features.mean(axis=(0, 1, 2))
    variance = jnp.square(features - mean).mean(axis=(0, 1, 2))
    count = features[..., 0].size
    unbiased = variance * (count / max(count - 1, 1))

    def moved(name, value):
        return (1 - _MOMENTUM) * params[name] + _MOMENTUM * value

    statistics = {
        "bn.running_mean": moved("bn.running_mean", mean),
        "bn.running_var": moved("bn.running_var", unbiased),
        "bn.num_batches_tracked": params["bn.num_batches_tracked"] + 1,
    }
    return _apply(params, features, mean, variance), statistics


def _apply(params, features, mean, variance):
    scale = params["bn.weight"] / jnp.sqrt(variance + _EPSILON)
    x = (features - mean) * scale + params["bn.bias"]
    kernel = params["conv_seg.weight"][:, :, 0, 0]
    x = jnp.einsum("bhwd,kd->bhwk", x, kernel, precision=jax.lax.Precision.HIGHEST)
    return x + params["conv_seg.bias"]


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, denominator: str = "all"
) -> jax.Array:
    """Compute the cross entropy of logits resized to the labels' size.

    Args:
      logits: Logits, [B, h, w, K].
      labels: Labels, int [B, H, W]; `IGNORE` does not count.
      denominator: "all" divides by all pixels, also ignored ones, as the reference was
        trained; "valid" by those that count.

    Returns:
      The mean loss, a scalar.
    """
    logits = dense_resize.bilinear(logits, labels.shape[1:])
    valid = labels != IGNORE
    chosen = jnp.where(valid, labels, 0).astype(jnp.int32)
    scores = jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - scores
    total = jnp.where(valid, losses, 0.0).sum()
    count = labels.size if denominator == "all" else jnp.maximum(valid.sum(), 1)
    return total / count


def trainable(params: Mapping[str, jax.Array]) -> Params:
    """Return the parameters without the batch norm's running statistics."""
    return {name: value for name, value in params.items() if name not in STATISTICS}


def pixel_accuracy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    """Return the share of pixels that are right, of those that are not ignored.

    Args:
      logits: Logits, [B, h, w, K].
      labels: Labels, int [B, H, W].
    """
    predictions = dense_resize.bilinear(logits, labels.shape[1:]).argmax(axis=-1)
    valid = labels != IGNORE
    return ((predictions == labels) & valid).sum() / jnp.maximum(valid.sum(), 1)
