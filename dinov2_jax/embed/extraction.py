"""Compiled extraction of features from batches of images on all devices."""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import feature_extractor, progress_bar, sharding
from dinov2_jax.data import preprocessing
from dinov2_jax.data.sources import base, messages
from dinov2_jax.embed import images as images_lib
from dinov2_jax.embed import resumable_output
from dinov2_jax.models import layers, vision_transformer
from dinov2_jax.runtime import out_of_memory

_CPU_BATCH, _ACCELERATOR_BATCH = 8, 64  # images per device
_MEMORY_SHARE = 0.25  # of the machine's memory, for weights on CPU devices


def default_dtype() -> str:
    """Return the dtype of matmuls that suits the devices."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def digest(params: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the parameters' names, shapes and values."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        total.update(np.ascontiguousarray(leaf, np.float32).data)
    return total.hexdigest()


class Extractor:
    """Feature extractor for batches of one size, compiled once.

    Images are divided among the devices, each of which holds all weights. CPU devices
    share one memory, so only as many are used as it has room for copies of the weights.

    Args:
      module: The backbone.
      params: Parameters of the backbone.
      kind: Kind of features, one of `feature_extractor.KINDS`.
      prepare: Size, mean and deviation of the images.
      dtype: Dtype of the matmuls.
      out_dtype: Dtype of the features.
      batch_size: Images per batch, rounded up to a multiple of the devices; None for a
        default that suits them.
      most: Number of all images; batches are not larger than needed for them.
      normalize: Whether to divide each feature vector by its length.

    Attributes:
      batch_size: Images per batch.
      devices: Number and kind of the devices, for people.

    Raises:
      UserError: Out of memory.
    """

    def __init__(
        self,
        module: vision_transformer.VisionTransformer,
        params: Mapping[str, Any],
        *,
        kind: str,
        prepare: preprocessing.Preprocessing,
        dtype: str,
        out_dtype: str,
        batch_size: int | None,
        most: int,
        normalize: bool = False,
    ):
        mesh = sharding.make_mesh(devices=_devices(params))
        device = mesh.devices.flat[0]
        batch_size = batch_size or mesh.size * (
            _CPU_BATCH if device.platform == "cpu" else _ACCELERATOR_BATCH
        )
        self.batch_size = -(-min(batch_size, most) // mesh.size) * mesh.size
        self.devices = f"{mesh.size} {device.device_kind}"
        module = module.clone(dtype=jnp.dtype(dtype))
        self._extractor = feature_extractor.FeatureExtractor(
            module,
            kind=kind,
            mean=prepare.mean,
            std=prepare.std,
            mesh=mesh,
            out_dtype=out_dtype,
            whole_weights=True,
            normalize=normalize,
        )
        size = prepare.crop_size
        shape = (self.batch_size, size, size, module.config.in_chans)
        # Otherwise TPUs and GPUs multiply float32 in lower precision.
        precision = "highest" if dtype == "float32" else "default"
        with self._memory_errors(), jax.default_matmul_precision(precision):
            blocks = jax.jit(lambda p: layers.cast_matmuls(p, dtype))(params["blocks"])
            self._params = jax.device_put(
                dict(params) | {"blocks": blocks}, sharding.replicated(mesh)
            )
            self._extract = self._extractor.compile(self._params, shape)

    def __call__(self, images: np.ndarray) -> jax.Array:
        """Return features of uint8 [batch_size, S, S, C] without waiting for them."""
        with self._memory_errors():
            return self._extract(self._params, self._extractor.place(images))

    def fetch(self, features: jax.Array) -> np.ndarray:
        """Copy the features that a call returned to the host."""
        with self._memory_errors():
            return np.asarray(features)

    def _memory_errors(self) -> contextlib.AbstractContextManager:
        images = messages.counted(self.batch_size, "image")
        less = f"add --batch-size={self.batch_size // 2}; finished rows are kept"
        if self.batch_size == 1:
            less = "use a smaller --size"
        return out_of_memory.explained(
            f"at {images} a batch on {self.devices}", lambda: less
        )


def compute(
    rows: resumable_output.Unfinished,
    source: base.Source,
    extractor: Extractor,
    prepare: preprocessing.Preprocessing,
    workers: int,
) -> None:
    """Append the rows of all images that are left.

    Args:
      rows: The output.
      source: The images.
      extractor: The compiled model.
      prepare: Preprocessing of the images.
      workers: Number of threads that decode.
    """
    batches = images_lib.batches(
        source,
        prepare,
        start=rows.done,
        batch_size=extractor.batch_size,
        workers=workers,
    )
    bar = progress_bar.Bar(len(source), done=rows.done)

    def append(batch, features):
        features = extractor.fetch(features)[batch.good]
        rows.append(features, done=batch.stop, bad=batch.bad)
        bar.update_to(batch.stop)

    try:
        pending = None  # computed while the next batch is fetched and dispatched
        for batch in batches:
            features = extractor(batch.images)
            if pending:
                append(*pending)
            pending = batch, features
        if pending:
            append(*pending)
    finally:
        batches.close()
        bar.close()


def _devices(params: Mapping[str, Any]) -> list[jax.Device]:
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return devices
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return devices[: max(int(_MEMORY_SHARE * memory / max(weights, 1)), 1)]
