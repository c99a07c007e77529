"""SSCD, a network that describes images so that copies are near (arXiv 2202.10261).

A ResNet-50 with its strides in the 3x3 convolutions, the generalised mean (GeM, p = 3)
of its last map, a linear layer, and unit length. Written from the paper and the
published descriptions. The published weights were never run here: tests compare random
ones with the same network in torch.

Shapes: B images, H and W pixels, C channels, D width of the descriptors.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax.curate import sscd_preprocessing
from dinov2_jax.models import network

KIND = "sscd"  # of features, in the settings of a features file
_POWER, _SMALLEST, _SHORTEST = 3, 1e-6, 1e-12  # of GeM; least length of a descriptor
_CANVAS = 32  # px, a divisor of the sides of batches: bounds the number of compilations
_CPU_BATCH, _ACCELERATOR_BATCH = 8, 64

# {"kernel", "bias"} by the layer's name, of convolutions [h, w, C_in, C_out] with the
# norm folded in, and "fc" [C, D]; see `sscd_weights.read`.
Params = Mapping[str, Mapping[str, Any]]


def descriptors(params: Params, images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Describe images, each in the upper left corner of its array.

    What an array has beside its image changes nothing, so images of several shapes
    share a batch and a compilation.

    Args:
      params: The network's parameters.
      images: uint8 [B, H, W, 3].
      sizes: Height and width of each image, px, int [B, 2].

    Returns:
      Descriptors of unit length, float32 [B, D].
    """
    x = _inside(network.normalize(images), sizes)
    x = jax.nn.relu(_conv(params["conv1"], x, stride=2))
    sizes = _halved(sizes)
    x = _inside(x, sizes)
    x = jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )
    sizes = _halved(sizes)
    for stage in range(1, 5):
        for block in itertools.count():
            name = f"layer{stage}.{block}"
            if f"{name}.conv1" not in params:
                break
            stride = 2 if stage > 1 and block == 0 else 1
            x, sizes = _bottleneck(params, name, x, sizes, stride)
    head = params["fc"]
    pooled = _generalised_mean(x, sizes)
    found = jnp.dot(pooled, head["kernel"], precision="highest") + head["bias"]
    length = jnp.linalg.norm(found, axis=-1, keepdims=True)
    return found / jnp.maximum(length, _SHORTEST)


def _bottleneck(
    params: Params, name: str, x: jax.Array, sizes: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    """Return the output of a block, [B, H', W', C'], and the images' sizes in it."""
    shortcut = x
    if f"{name}.downsample" in params:
        shortcut = _conv(params[f"{name}.downsample"], x, stride=stride)
    x = _inside(jax.nn.relu(_conv(params[f"{name}.conv1"], x)), sizes)
    x = jax.nn.relu(_conv(params[f"{name}.conv2"], x, stride=stride))
    if stride == 2:
        sizes = _halved(sizes)
    return jax.nn.relu(_conv(params[f"{name}.conv3"], x) + shortcut), sizes


def _conv(layer: Mapping[str, Any], x: jax.Array, *, stride: int = 1) -> jax.Array:
    """Convolve [B, H, W, C_in] with zeros around it, half a kernel wide."""
    pad = layer["kernel"].shape[0] // 2
    found = jax.lax.conv_general_dilated(
        x,
        layer["kernel"],
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",  # else GPUs and TPUs multiply in lower precision
    )
    return found + layer["bias"]


def _halved(sizes: jax.Array) -> jax.Array:
    return (sizes + 1) // 2


def _mask(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return where [B, H, W, C] belongs to the images, bool [B, H, W, 1]."""
    rows = jnp.arange(x.shape[1]) < sizes[:, :1]
    columns = jnp.arange(x.shape[2]) < sizes[:, 1:]
    return (rows[:, :, None] & columns[:, None])[..., None]


def _inside(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Set to zero what lies beside the images, as if the arrays ended there."""
    return jnp.where(_mask(x, sizes), x, 0)


def _generalised_mean(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return the mean of [B, H, W, C] over the image of the power p, its root."""
    powers = jnp.where(_mask(x, sizes), jnp.maximum(x, _SMALLEST) ** _POWER, 0)
    mean = powers.sum(axis=(1, 2)) / sizes.prod(axis=1)[:, None]
    return mean ** (1 / _POWER)


class Describer:
    """The compiled network, for batches on the first device.

    Args:
      params: The network's parameters.
      prepare: Preprocessing of the images.
      most: Number of all images; batches are not larger.

    Attributes:
      prepare: Preprocessing of the images.
      batch_size: Most images of a batch.
      dim: Width of the descriptors, D.
    """

    def __init__(
        self, params: Params, prepare: sscd_preprocessing.Preprocessing, *, most: int
    ):
        on_cpu = jax.default_backend() == "cpu"
        usual = _CPU_BATCH if on_cpu else _ACCELERATOR_BATCH
        # Images of any shape come one by one, since the longest would set the size.
        one_shape = prepare.resize == "squeeze"
        self.batch_size = min(usual, most) if one_shape else 1
        self.dim = len(params["fc"]["bias"])
        self.prepare = prepare
        self._params = jax.device_put(params)
        self._describe = jax.jit(descriptors)

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return the descriptors of at most a batch of prepared images, [n, D]."""
        if not pictures:
            return np.empty((0, self.dim), np.float32)
        sizes = np.ones((self.batch_size, 2), np.int32)
        sizes[: len(pictures)] = [picture.shape[:2] for picture in pictures]
        height, width = -(-sizes.max(axis=0) // _CANVAS) * _CANVAS
        images = np.zeros((self.batch_size, height, width, 3), np.uint8)
        for image, picture in zip(images, pictures):
            image[: picture.shape[0], : picture.shape[1]] = picture
        return np.asarray(self._describe(self._params, images, sizes))[: len(pictures)]

    def describe(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Return the descriptors of any number of prepared images, float32 [n, D].

        Args:
          images: uint8 [H, W, 3] each.
        """
        images = iter(images)
        batches = iter(lambda: list(itertools.islice(images, self.batch_size)), [])
        return np.concatenate([self([]), *map(self, batches)])
