"""The one way in which evaluations of whole images run a backbone.

Shapes: B images, S their side in pixels, n last blocks, D width.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, pretrained, sharding
from dinov2_jax.data import preprocessing
from dinov2_jax.embed import extraction
from dinov2_jax.models import vision_transformer


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A trained model and how its features are computed.

    Attributes:
      source: What the user named as the model.
      model: The loaded model.
      digest: SHA-256 of its parameters.
      dtype: Dtype of the matmuls.
      batch_size: Images at a time over all devices; None for a default.
      workers: Threads that decode.
      cache: Folder for features.
    """

    source: str
    model: pretrained.Model
    digest: str
    dtype: str
    batch_size: int | None
    workers: int
    cache: pathlib.Path

    def prepare(self, resize: int, size: int) -> preprocessing.Preprocessing:
        """Return the evaluation transform with these sizes.

        Args:
          resize: Short side before the crop, px.
          size: Side of the crop, px.

        Raises:
          UserError: The sizes do not fit the model or each other.
        """
        patch = self.model.module.patch_size
        if size % patch:
            nearest = max(round(size / patch), 1) * patch
            raise errors.UserError(
                f"--size={size} is not a multiple of the patch size {patch}: use "
                f"--size={nearest}"
            )
        if resize < size:
            raise errors.UserError(
                f"--resize={resize} is less than --size={size}: use --resize={size} or "
                "more"
            )
        return dataclasses.replace(
            self.model.preprocessing, resize_size=resize, crop_size=size
        )

    def extractor(
        self, kind: str, prepare: preprocessing.Preprocessing, most: int
    ) -> Any:
        """Compile the extraction of features.

        Args:
          kind: "cls" for class tokens [D], or "last1", "last2" ... for the class tokens
            of the last n blocks, the oldest first, and the mean patch token of the last
            one, [n + 1, D].
          prepare: Transform of the images.
          most: Number of all images.

        Returns:
          An `embed.extraction.Extractor`, or what is called like it.
        """
        if kind == "cls":
            return extraction.Extractor(
                self.model.module,
                self.model.params,
                kind=kind,
                prepare=prepare,
                dtype=self.dtype,
                out_dtype="float32",
                batch_size=self.batch_size,
                most=most,
            )
        return _LastBlocksExtractor(self, blocks_of(kind), prepare, most)


def load(
    source: str,
    *,
    which: str | None = None,
    num_heads: int | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    cache: str | os.PathLike,
) -> Backbone:
    """Load a model for evaluations.

    Args:
      source: Whatever `dinov2_jax.load` takes.
      which: "teacher" or "student" of a training checkpoint.
      num_heads: Number of attention heads, if the weights do not tell.
      dtype: Dtype of the matmuls; None for one that suits the devices.
      batch_size: Images at a time over all devices; None for a default.
      workers: Threads that decode; None for one a core.
      cache: Folder for features.

    Raises:
      UserError: The weights cannot be read, or take other images than RGB.
    """
    model = pretrained.load(source, which=which, num_heads=num_heads)
    if model.module.in_chans != 3:
        raise errors.UserError(
            f"{source} takes images of {model.module.in_chans} channels: files are "
            "read as RGB, which has 3"
        )
    return Backbone(
        source=source,
        model=model,
        digest=extraction.digest(model.params),
        dtype=dtype or extraction.default_dtype(),
        batch_size=batch_size,
        workers=workers or os.cpu_count() or 1,
        cache=pathlib.Path(cache),
    )


def blocks_of(kind: str) -> int:
    """Return the number n of last blocks in features of the kind "last<n>"."""
    return int(kind.removeprefix("last"))


def row_shape(backbone: Backbone, kind: str) -> tuple[int, ...]:
    """Return the shape of one image's features of a kind."""
    width = backbone.model.module.embed_dim
    return (width,) if kind == "cls" else (blocks_of(kind) + 1, width)


def last_blocks(
    module: vision_transformer.VisionTransformer,
    params: Mapping[str, Any],
    images: jax.Array,
    *,
    blocks: int,
    prepare: preprocessing.Preprocessing,
) -> tuple[jax.Array, jax.Array]:
    """Compute class tokens of the last blocks and the mean patch token of the last.

    All go through the backbone's last LayerNorm.

    Args:
      module: The backbone.
      params: Its parameters.
      images: uint8 [B, S, S, 3].
      blocks: Number of last blocks n.
      prepare: Preprocessing with the mean and deviation.

    Returns:
      float32 [B, n, D], the oldest block first, and [B, D].
    """
    x = (images.astype(jnp.float32) / 255.0 - jnp.float32(prepare.mean)) / (
        jnp.float32(prepare.std)
    )
    taps = tuple(range(-blocks, -1))
    out = module.apply({"params": params}, x, layers=taps)
    cls = jnp.stack([out.layers[i].cls for i in taps] + [out.cls], axis=1)
    mean = out.patches.astype(jnp.float32).mean(axis=(1, 2))
    return cls.astype(jnp.float32), mean


class _LastBlocksExtractor:
    """Features "last<n>", with the interface of `embed.extraction.Extractor`."""

    def __init__(self, backbone, blocks, prepare, most):
        module = backbone.model.module.clone(dtype=jnp.dtype(backbone.dtype))
        mesh = sharding.make_mesh(devices=jax.local_devices())
        wanted = min(backbone.batch_size or 8 * mesh.size, most)
        self.batch_size = -(-wanted // mesh.size) * mesh.size
        self._mesh, self._images = mesh, sharding.batch_sharding(mesh)
        self._params = jax.device_put(backbone.model.params, sharding.replicated(mesh))
        precision = "highest" if backbone.dtype == "float32" else "default"

        @jax.jit
        def extract(params, images):
            with jax.default_matmul_precision(precision):
                cls, mean = last_blocks(
                    module, params, images, blocks=blocks, prepare=prepare
                )
            return jnp.concatenate([cls, mean[:, None]], axis=1)

        self._extract = extract

    def __call__(self, images: np.ndarray) -> jax.Array:
        with jax.set_mesh(self._mesh):
            return self._extract(self._params, jax.device_put(images, self._images))

    def fetch(self, features: jax.Array) -> np.ndarray:
        """Copy features to the host."""
        return np.asarray(features)
