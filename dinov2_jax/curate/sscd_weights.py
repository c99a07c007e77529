"""Reader of SSCD's weights, which needs no torch and executes nothing in the file.

The published `.torchvision.pt` files are state dicts with torchvision's names of a
ResNet-50 below `backbone.`, whose `fc` is the linear layer of the descriptor. This is
what the published code says; none of the files was ever read here. The `.classy.pt`
files have other names, and `.torchscript.pt` files are programs.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, tensor_file

_PREFIX = "backbone."
_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # of a norm, not used
_EPSILON = 1e-5  # of the norms
_EXPANSION = 4  # channels of a block by those inside it
_WIDTH, _DIM = 64, 512  # where a file does not say
_WANTED = "pass SSCD's .torchvision.pt, such as sscd_disc_mixup.torchvision.pt"
_CLASSY = ("backbone.initial_block.", "backbone.blocks.", "embeddings.")


@dataclasses.dataclass(frozen=True)
class _Layer:
    name: str  # in our parameters
    conv: str  # in the file, as is
    norm: str
    shape: tuple[int, int, int, int]  # [C_out, C_in, h, w]


def read(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """Read the weights strictly: every tensor is used, and none is missing.

    The numbers of blocks and channels are those of the file: 3, 4, 6 and 3 blocks from
    64 channels on, and descriptors 512 wide, if published.

    Args:
      path: A state dict, written by `torch.save` or as .safetensors.

    Returns:
      Parameters for `sscd.descriptors`, float32, the norms folded into the
      convolutions.

    Raises:
      UserError: It is another file, does not have exactly these tensors, or has values
        that are not finite.
    """
    try:
        tensors = tensor_file.read(path)
    except errors.UserError as error:
        raise errors.UserError(f"{error}; or {_WANTED}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, lazy_tensor.LazyTensor)
        for name, value in tensors.items()
    ):
        raise errors.UserError(f"{path} has more than tensors by name: {_WANTED}")
    if any(name.startswith(_CLASSY) for name in tensors):
        raise errors.UserError(
            f"{path} has the names of Classy Vision: {_WANTED} (sscd_disc_large, a "
            "ResNeXt, has no such file and is not supported)"
        )
    layers = list(_layers(_blocks(tensors), _first(tensors, "conv1.weight", _WIDTH)))
    dim, channels = _first(tensors, "fc.bias", _DIM), layers[-1].shape[0]
    head = {f"{_PREFIX}fc.weight": (dim, channels), f"{_PREFIX}fc.bias": (dim,)}
    _compare(path, tensors, layers, head)
    params = {layer.name: _folded(tensors, layer) for layer in layers}
    kernel, bias = (tensors[name].read() for name in head)
    params["fc"] = {
        "kernel": np.ascontiguousarray(kernel.T, np.float32),
        "bias": np.asarray(bias, np.float32),
    }
    for name, arrays in params.items():
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise errors.UserError(
                f"{path}: {name} has values that are not finite: download the file "
                f"again, or {_WANTED}"
            )
    return params


def _blocks(tensors: Mapping[str, Any]) -> list[int]:
    """Return the number of blocks of each stage, at least 1."""
    blocks = [1, 1, 1, 1]
    for name in tensors:
        if match := re.match(rf"{re.escape(_PREFIX)}layer([1-4])\.(\d\d?)\.", name):
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    return blocks


def _first(tensors: Mapping[str, Any], name: str, otherwise: int) -> int:
    """Return the first dimension of a tensor, or another number if it has none."""
    tensor = tensors.get(_PREFIX + name)
    return tensor.shape[0] if tensor is not None and tensor.shape else otherwise


def _layers(blocks: list[int], width: int) -> Iterator[_Layer]:
    """Yield the convolutions of the network, the one before the head last."""

    def layer(name, outputs, inputs, size, conv="", norm="") -> _Layer:
        conv, norm = conv or name, norm or name.replace("conv", "bn")
        shape = outputs, inputs, size, size
        return _Layer(name, f"{_PREFIX}{conv}.weight", _PREFIX + norm, shape)

    yield layer("conv1", width, 3, 7)
    inputs = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        outputs = _EXPANSION * inner
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            if block == 0:
                down = f"{name}.downsample"
                yield layer(down, outputs, inputs, 1, f"{down}.0", f"{down}.1")
            yield layer(f"{name}.conv1", inner, inputs, 1)
            yield layer(f"{name}.conv2", inner, inner, 3)
            yield layer(f"{name}.conv3", outputs, inner, 1)
            inputs = outputs


def _compare(path, tensors, layers, head) -> None:
    """Raise UserError unless the file has exactly the tensors of these layers."""
    shapes, counters = {}, set()
    for layer in layers:
        shapes[layer.conv] = layer.shape
        shapes |= {f"{layer.norm}.{part}": layer.shape[:1] for part in _NORM}
        counters.add(f"{layer.norm}.{_COUNTER}")
    shapes |= head
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise errors.UserError(
            f"{path} lacks {len(missing)} tensors of SSCD's ResNet-50, such as "
            f"{missing[0]}: {_WANTED}"
        )
    unknown = [name for name in tensors if name not in shapes.keys() | counters]
    if unknown:
        raise errors.UserError(
            f"{path} has {len(unknown)} tensors that SSCD's ResNet-50 has not, such as "
            f"{ascii(unknown[0][:100])}: {_WANTED}"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise errors.UserError(
                f"{path}: {name} is {list(tensors[name].shape)}, and {list(shape)} in "
                f"SSCD's ResNet-50: {_WANTED}"
            )


def _folded(tensors: Mapping[str, Any], layer: _Layer) -> dict[str, np.ndarray]:
    """Return a convolution that includes its norm, [h, w, C_in, C_out] and [C_out]."""
    weight = tensors[layer.conv].read()
    scale, shift, mean, variance = (
        np.asarray(tensors[f"{layer.norm}.{part}"].read(), np.float64) for part in _NORM
    )
    scale = scale / np.sqrt(variance + _EPSILON)
    kernel = np.transpose(weight, (2, 3, 1, 0)) * scale
    return {
        "kernel": np.ascontiguousarray(kernel, np.float32),
        "bias": np.asarray(shift - mean * scale, np.float32),
    }
