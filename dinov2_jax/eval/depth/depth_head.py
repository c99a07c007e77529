"""Linear depth heads: an expectation over 256 bins of depth for each patch.

Mirrors the reference's `eval/depth/models/decode_heads/linear_head.py` (BNHead, which
has no batch norm). Parameters are a flat dict under the names and in the layout of the
released files, without the prefix `decode_head.`.

Shapes: B images, h x w patches, n blocks, D width.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.eval.dense import dense_resize

NUM_BINS = 256
UPSAMPLE = 4  # the map is finer than the patches by this

Params = dict[str, jax.Array]


def init(seed: int, width: int, layers: int) -> Params:
    """Return the parameters of a new head, with torch's default initialisation.

    Args:
      seed: Seed of the weights.
      width: Width D of the backbone.
      layers: Number of blocks n.
    """
    channels = 2 * width * layers
    bound = channels**-0.5
    keys = jax.random.split(jax.random.key(seed))
    shapes = {
        "conv_depth.weight": (NUM_BINS, channels, 1, 1),
        "conv_depth.bias": (NUM_BINS,),
    }
    return {
        name: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        for key, (name, shape) in zip(keys, shapes.items())
    }


def joined(taps: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Concatenate patch features and class tokens of several blocks.

    Args:
      taps: Patch features [B, h, w, D] and class tokens [B, D] of each block.

    Returns:
      [B, h, w, 2nD].
    """
    parts = []
    for patches, cls in taps:
        parts += [patches, jnp.broadcast_to(cls[:, None, None], patches.shape)]
    return jnp.concatenate(parts, axis=-1)


def logits(params: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
    """Compute the logits of the bins.

    The reference resizes the features and then applies the linear layer. Both are
    linear, so the other order gives the same at a sixteenth of the work.

    Args:
      params: Parameters of the head.
      features: Features of `joined`, [B, h, w, 2nD].

    Returns:
      [B, 4h, 4w, 256].
    """
    kernel = params["conv_depth.weight"][:, :, 0, 0]
    x = jnp.einsum(
        "bhwd,kd->bhwk", features, kernel, precision=jax.lax.Precision.HIGHEST
    )
    height, width = features.shape[1:3]
    x = dense_resize.bilinear(x, (height * UPSAMPLE, width * UPSAMPLE))
    return x + params["conv_depth.bias"]


def expected_depth(logits: jax.Array, *, depth_range: tuple[float, float]) -> jax.Array:
    """Turn logits into the mean of the bins' depths.

    Args:
      logits: Logits, [B, h, w, 256].
      depth_range: Depths of the first and the last bin, metres.

    Returns:
      Depth in metres, [B, h, w, 1].
    """
    weights = jax.nn.relu(logits) + 0.1
    bins = np.linspace(*depth_range, logits.shape[-1], dtype=np.float32)
    total = weights.sum(axis=-1, keepdims=True)
    return (weights * bins).sum(axis=-1, keepdims=True) / total


def depth(
    params: Mapping[str, jax.Array],
    taps: Sequence[tuple[jax.Array, jax.Array]],
    *,
    depth_range: tuple[float, float],
) -> jax.Array:
    """Predict depth from features without the last LayerNorm.

    Args:
      params: Parameters of the head.
      taps: Patch features [B, h, w, D] and class tokens [B, D] of each block.
      depth_range: Least and largest depth, metres.

    Returns:
      Depth in metres, [B, 4h, 4w, 1].
    """
    return expected_depth(logits(params, joined(taps)), depth_range=depth_range)


def at_size(
    prediction: jax.Array, size: tuple[int, int], *, depth_range: tuple[float, float]
) -> jax.Array:
    """Clamp a prediction to its range, then resize it, as at inference.

    Args:
      prediction: Depth, [B, h, w, 1].
      size: Height and width of the image.
      depth_range: Least and largest depth, metres.
    """
    return dense_resize.bilinear(jnp.clip(prediction, *depth_range), size)
