"""Features of frozen backbones: the one way from uint8 images to features.

Used by `embed`, the evaluations and the k-NN of the training loop.

Shapes: B images, S their side in pixels, C channels, h x w patches, D width.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from dinov2_jax import sharding
from dinov2_jax.models import network, vision_transformer

KINDS = ("cls", "patch_mean", "cls+patch_mean", "patches")
_SHORTEST = 1e-12  # length that a zero vector counts as when it is normalised
_LAST = "last"  # beside `KINDS`, "last1", "last2" ...: see `features`


def features_shape(
    module: vision_transformer.VisionTransformer, kind: str, size: int
) -> tuple[int, ...]:
    """Return the shape of one image's features.

    Args:
      module: The backbone.
      kind: Kind of features, as in `features`.
      size: Side S of the images, px.

    Returns:
      (D,), (2 * D,) for "cls+patch_mean", (h, w, D) for "patches", (n + 1, D) for
      "last<n>".
    """
    side = size // module.config.patch_size
    width = module.config.embed_dim
    if kind.startswith(_LAST):
        return _num_blocks(kind) + 1, width
    return {"cls+patch_mean": (2 * width,), "patches": (side, side, width)}.get(
        kind, (width,)
    )


def _num_blocks(kind: str) -> int:
    return int(kind.removeprefix(_LAST))


def features(
    module: vision_transformer.VisionTransformer,
    params: Any,
    images: jax.Array,
    kind: str,
) -> jax.Array:
    """Compute features after the last LayerNorm.

    Args:
      module: The backbone; its `dtype` is that of the matmuls.
      params: Parameters of the backbone.
      images: Normalised images, float32 [B, S, S, C].
      kind: "cls", the class token; "patch_mean", the mean of the patch tokens;
        "cls+patch_mean", both concatenated; "patches", the patch tokens; or "last<n>",
        the class tokens of the last n blocks, the oldest first, and the mean of the
        last one's patch tokens.

    Returns:
      float32 [B, ...]; see `features_shape`.
    """
    apply = functools.partial(module.apply, {"params": params}, images)
    if kind.startswith(_LAST):
        cls, mean = last_blocks(module, params, images, blocks=_num_blocks(kind))
        return jnp.concatenate([cls, mean[:, None]], axis=1)
    if kind == "cls":
        return apply(method="class_tokens").astype(jnp.float32)
    out = apply()
    patches = out.patches.astype(jnp.float32)
    if kind == "patches":
        return patches
    mean = patches.mean(axis=(1, 2))
    if kind == "patch_mean":
        return mean
    return jnp.concatenate([out.cls.astype(jnp.float32), mean], axis=-1)


def last_blocks(
    module: vision_transformer.VisionTransformer,
    params: Any,
    images: jax.Array,
    *,
    blocks: int,
) -> tuple[jax.Array, jax.Array]:
    """Compute class tokens of the last blocks and the mean patch token of the last.

    All go through the backbone's last LayerNorm.

    Args:
      module: The backbone.
      params: Parameters of the backbone.
      images: Normalised images, float32 [B, S, S, C].
      blocks: Number of last blocks n.

    Returns:
      float32 [B, n, D], the oldest block first, and [B, D].
    """
    layers = tuple(range(-blocks, -1))
    out = module.apply({"params": params}, images, layers=layers)
    cls = jnp.stack([out.layers[i].cls for i in layers] + [out.cls], axis=1)
    mean = out.patches.astype(jnp.float32).mean(axis=(1, 2))
    return cls.astype(jnp.float32), mean


class FeatureExtractor:
    """Feature extractor on all devices, compiled once for each shape of images.

    Args:
      module: The backbone.
      kind: Kind of features, as in `features`.
      mean: Mean of each channel of the images, with values in [0, 1].
      std: Standard deviation of each channel.
      mesh: Mesh over whose devices the images are divided.
      out_dtype: Dtype of the features.
      whole_weights: Whether every device holds all weights and works on its own, which
        is faster; otherwise weights stay sharded as they are, as in a training run.
      normalize: Whether to divide each feature vector, along the last axis, by its
        length.
    """

    def __init__(
        self,
        module: vision_transformer.VisionTransformer,
        *,
        kind: str,
        mean: Sequence[float],
        std: Sequence[float],
        mesh: Mesh,
        out_dtype: str = "float32",
        whole_weights: bool = False,
        normalize: bool = False,
    ):
        self._mesh = mesh
        self._images = sharding.batch_sharding(mesh)

        def extract(params, images):
            normalized = network.normalize(images, mean, std)
            found = features(module, params, normalized, kind)
            if normalize:
                length = jnp.linalg.norm(found, axis=-1, keepdims=True)
                found /= jnp.maximum(length, _SHORTEST)
            return found.astype(out_dtype)

        if whole_weights:
            extract = jax.shard_map(
                extract,
                mesh=mesh,
                in_specs=(PartitionSpec(), sharding.BATCH),
                out_specs=sharding.BATCH,
            )
        # Every process of a run needs all features.
        replicated = None if whole_weights else sharding.replicated(mesh)
        self._extract = jax.jit(extract, out_shardings=replicated)

    def compile(self, params: Any, shape: tuple[int, ...]) -> Any:
        """Compile for images of one shape, a multiple of the devices.

        Args:
          params: Parameters of the backbone, or their shapes.
          shape: Shape of the images, (B, S, S, C).

        Returns:
          The compiled function of parameters and placed images.
        """
        images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=self._images)
        with jax.set_mesh(self._mesh):
            return self._extract.lower(params, images).compile()

    def place(self, images: np.ndarray) -> jax.Array:
        """Divide uint8 images [B, S, S, C] among the devices, which divide B."""
        return jax.make_array_from_callback(
            images.shape, self._images, lambda index: images[index]
        )

    def __call__(self, params: Any, images: np.ndarray) -> np.ndarray:
        """Compute features on the host.

        Args:
          params: Parameters of the backbone.
          images: uint8 [B, S, S, C]; all processes pass the same.

        Returns:
          [B, ...] in `out_dtype`; see `features_shape`.
        """
        count = len(images)
        padding = -count % self._mesh.size
        images = np.pad(images, ((0, padding), *[(0, 0)] * (images.ndim - 1)))
        with jax.set_mesh(self._mesh):
            return np.asarray(self._extract(params, self.place(images)))[:count]
