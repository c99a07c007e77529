"""Compiled extraction of features from batches of images on all devices."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from dinov2_jax import errors, sharding
from dinov2_jax.data import preprocessing
from dinov2_jax.embed import forward
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import architecture

_CPU_BATCH, _ACCELERATOR_BATCH = 8, 64  # images per device
_MEMORY_SHARE = 0.25  # of the machine's memory, for weights on CPU devices


def default_dtype() -> str:
    """Return the dtype of matmuls that suits the devices."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def describe(module: vision_transformer.VisionTransformer) -> dict[str, Any]:
    """Return the architecture as JSON values."""
    return architecture.describe(module)


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
      kind: Kind of features, one of `forward.KINDS`.
      prepare: Size, mean and deviation of the images.
      dtype: Dtype of the matmuls.
      out_dtype: Dtype of the features.
      batch_size: Images per batch, rounded up to a multiple of the devices; None for a
        default that suits them.
      most: Number of all images; batches are not larger than needed for them.

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
    ):
        mesh = sharding.make_mesh(devices=_devices(params))
        device = mesh.devices.flat[0]
        on_cpu = device.platform == "cpu"
        batch_size = batch_size or mesh.size * (
            _CPU_BATCH if on_cpu else _ACCELERATOR_BATCH
        )
        self.batch_size = -(-min(batch_size, most) // mesh.size) * mesh.size
        self.devices = f"{mesh.size} {device.device_kind}"
        self._images = sharding.batch_sharding(mesh)
        module = module.clone(dtype=jnp.dtype(dtype))
        size = prepare.crop_size

        def extract(params, images):
            features = forward.features(
                module,
                params,
                images,
                kind=kind,
                prepare_images=prepare,
                by_image=on_cpu,
            )
            return features.astype(out_dtype)

        extract = jax.shard_map(
            extract,
            mesh=mesh,
            in_specs=(PartitionSpec(), sharding.BATCH),
            out_specs=sharding.BATCH,
        )
        # Otherwise TPUs and GPUs multiply float32 in lower precision.
        precision = "highest" if dtype == "float32" else "default"
        with self._memory_errors(), jax.default_matmul_precision(precision):
            self._params = jax.device_put(
                jax.jit(lambda p: forward.prepare(module, p, size))(params),
                sharding.replicated(mesh),
            )
            images = jax.ShapeDtypeStruct(
                (self.batch_size, size, size, module.in_chans),
                np.uint8,
                sharding=self._images,
            )
            self._extract = jax.jit(extract).lower(self._params, images).compile()

    def __call__(self, images: np.ndarray) -> jax.Array:
        """Return features of uint8 [batch_size, S, S, C] without waiting for them."""
        with self._memory_errors():
            return self._extract(self._params, jax.device_put(images, self._images))

    def fetch(self, features: jax.Array) -> np.ndarray:
        """Copy the features that a call returned to the host."""
        with self._memory_errors():
            return np.asarray(features)

    @contextlib.contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise errors.UserError(
                f"out of memory at {self.batch_size} images a batch on "
                f"{self.devices}: add --batch-size={max(self.batch_size // 2, 1)}; "
                "what is done is kept"
            ) from error


def _devices(params: Mapping[str, Any]) -> list[jax.Device]:
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return devices
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return devices[: max(int(_MEMORY_SHARE * memory / weights), 1)]
