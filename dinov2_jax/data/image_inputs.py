"""Conversion of paths, bytes, Pillow images and arrays to uint8 pixels."""

import io
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import image_decoder

_EXPECTED = (
    "expected uint8 [H, W, 3] or floats in [0, 1], a Pillow image, a path or the bytes "
    "of a file"
)


def is_single(images: Any) -> bool:
    """Return whether this is one image rather than a sequence of images."""
    one = str | os.PathLike | bytes | bytearray | memoryview | io.IOBase | Image.Image
    iterable = isinstance(images, Iterable) and not isinstance(images, Mapping)
    return isinstance(images, one) or not iterable or getattr(images, "ndim", 4) < 4


def to_pixels(image: Any) -> np.ndarray:
    """Return an image as uint8 [H, W, 3].

    Args:
      image: A path ("~" is the home folder), the content of a file as bytes or an open
        file, a Pillow image, or an array of NumPy, jax or torch: uint8 or floats in
        [0, 1], [H, W, 3] (torch also [3, H, W]).

    Raises:
      BadImage: A file is not a readable image.
      ValueError: It is something else, such as a URL; the message is one line.
    """
    decoder = image_decoder.Decoder()
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if isinstance(path, str) and re.match(r"[A-Za-z][\w+.-]+://|data:", path):
            raise ValueError(
                f"{path[:100]} is a URL: nothing is downloaded, pass the bytes of the "
                "file or a path"
            )
        return decoder.decode(os.path.expanduser(path), name=os.fsdecode(path))
    if isinstance(image, io.IOBase):
        image = image.read()
    if isinstance(image, bytes | bytearray | memoryview):
        return decoder.decode(bytes(image), name="the image")
    if isinstance(image, Image.Image):
        return decoder.from_pillow(image, name="the image")
    return _from_array(_as_numpy(image))


def _as_numpy(image: Any) -> np.ndarray:
    """Convert an array of any library to NumPy, with the channels last."""
    library = type(image).__module__.partition(".")[0]
    if library == "torch":
        image = image.detach().cpu()
        if image.ndim == 3 and image.shape[-1] != 3 and image.shape[0] == 3:
            image = image.permute(1, 2, 0)
        if str(image.dtype) == "torch.bfloat16":  # which NumPy does not know
            image = image.float()
        return image.numpy()
    if hasattr(image, "ndim") and hasattr(image, "dtype"):
        return np.asarray(image)
    raise ValueError(f"an image is {type(image)}: {_EXPECTED}")


def _from_array(image: np.ndarray) -> np.ndarray:
    what = f"an image is {image.dtype} {list(image.shape)}"
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{what}: {_EXPECTED}")
    if not image.size:
        raise ValueError(f"{what}: it has no pixels")
    if image.dtype == np.uint8:
        return image
    try:
        floats = image.astype(np.float32) if image.dtype.kind in "fV" else None
    except (TypeError, ValueError):
        floats = None
    if floats is None:
        raise ValueError(f"{what}: {_EXPECTED}")
    low, high = floats.min(), floats.max()
    if not (0 <= low and high <= 1):  # also if they are not finite
        fix = "divide by the largest possible value"
        if low < 0:
            fix = "if it is normalised already, pass it to the model itself"
        elif high <= 255:
            fix = "pass image.astype(np.uint8)"
        raise ValueError(
            f"{what} of values from {low:g} to {high:g}: expected floats in [0, 1]; "
            f"{fix}"
        )
    return np.rint(floats * 255).astype(np.uint8)
