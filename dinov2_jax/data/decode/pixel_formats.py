"""Conversion of an image opened by Pillow, of any mode, to uint8 [H, W, C].

Colour profiles (ICC) are deliberately ignored, as in the reference: nearly all
photographs are sRGB, and training does not gain from the conversion.
"""

from typing import Any

import numpy as np
from PIL import Image


class Unusable(ValueError):
    """A short reason why an image cannot be used."""


# How to undo EXIF orientations (1: upright): (whether to transpose, then axes to flip).
_TURNS = {
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}


def swaps_sides(orientation: int) -> bool:
    """Return whether an orientation swaps width and height."""
    return orientation in _TURNS and _TURNS[orientation][0]


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels upright.

    Args:
      pixels: Stored pixels, [H, W, C].
      orientation: EXIF orientation, 1 to 8; other values are ignored.

    Returns:
      [H, W, C] or [W, H, C], contiguous.
    """
    if orientation not in _TURNS:
        return pixels
    channels, kind = pixels.shape[2], pixels.dtype
    # As one item per pixel, which is twice as fast.
    items = np.ascontiguousarray(pixels).view(f"V{channels * kind.itemsize}")[..., 0]
    transpose, flipped = _TURNS[orientation]
    if transpose:
        items = items.T
    items = np.ascontiguousarray(np.flip(items, flipped))
    return items.view(kind).reshape(*items.shape, channels)


def loses_bits(image: Image.Image) -> bool:
    """Return whether Pillow reads only 8 of the 16 bits of a channel."""
    if is_deep(image):
        return False
    tiles = getattr(image, "tile", ())  # only images from files have any
    deep = any(";16" in str(tile.args) for tile in tiles)
    return deep or _netpbm_maximum(image) > 255


def is_deep(image: Image.Image) -> bool:
    """Return whether Pillow holds more than 8 bits of a channel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _netpbm_maximum(image: Image.Image) -> int:
    """Return the highest value that the header of a PGM or PPM file allows, or 0.

    Pillow forgets it once the image is loaded.
    """
    tiles = getattr(image, "tile", ())
    if image.format != "PPM" or not tiles:
        return 0
    arguments = tiles[0].args
    if isinstance(arguments, tuple) and isinstance(arguments[-1], int):
        return max(arguments[-1], 0)
    return 65535 if ";16" in str(arguments) else 0


def _netpbm_values(image: Image.Image, value_range: Any) -> np.ndarray:
    """Return the values of a 16-bit PGM, uint16 [H, W].

    Pillow stretches them to 0..65535. That is undone if there is a range, which speaks
    of the values in the file.
    """
    maximum = _netpbm_maximum(image)
    values = np.asarray(image).astype(np.uint16)
    if value_range is None or maximum in (0, 65535):
        return values
    return np.rint(values * (maximum / 65535)).astype(np.uint16)


def to_array(
    image: Image.Image,
    *,
    channels: int,
    value_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Return an opened image's pixels as stored, not turned upright.

    One channel is the luma, three are RGB, with alpha composited over white; any other
    number is the file's own channels, unchanged.

    Args:
      image: The image, as Pillow opened it.
      channels: Number of channels, C.
      value_range: See `to_uint8`.

    Returns:
      uint8 [H, W, C], possibly read-only.

    Raises:
      Unusable: The value range is undefined, or the number of channels is not C.
      Exception: Almost any kind, on damaged bytes.
    """
    mode = image.mode
    if channels not in (1, 3):
        if len(image.getbands()) != channels:
            raise Unusable(
                f"{len(image.getbands())} channels ({mode}), expected {channels}"
            )
        return np.asarray(image)
    if is_deep(image):
        if image.format == "PPM" and mode == "I":
            values = _netpbm_values(image, value_range)
        else:
            values = np.asarray(image)
        gray = to_uint8(values, value_range)
        hidden = image.info.get("transparency")
        if isinstance(hidden, int):  # a value of 16-bit PNG
            gray = np.where(values == hidden, np.uint8(255), gray)
        return gray_or_rgb(gray[:, :, None], channels)
    if mode == "La":
        image, mode = image.convert("LA"), "LA"
    if mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if channels == 1:
        if image.mode != "L":
            image = image if image.mode in ("1", "RGB") else image.convert("RGB")
            image = image.convert("L")
        return np.asarray(image)[:, :, None]
    # convert() would copy an RGB image, and np.array() would copy once more.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def gray_or_rgb(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return uint8 [H, W, 1] or [H, W, 3] as luma or RGB, [H, W, C] for C = 1 or 3."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]


def over_white(
    pixels: np.ndarray, alpha: np.ndarray, premultiplied: bool
) -> np.ndarray:
    """Composite pixels over white.

    Args:
      pixels: uint8 [H, W, C].
      alpha: Opacity of each pixel, uint8 [H, W].
      premultiplied: Whether the pixels are already multiplied by it.

    Returns:
      uint8 [H, W, C].
    """
    opacity = alpha[:, :, None] / np.float32(255)
    stored = pixels if premultiplied else pixels * opacity
    x = stored + 255 * (1 - opacity)
    return np.rint(np.clip(x, 0, 255)).astype(np.uint8)


def to_uint8(values: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """Scale pixels of any numeric type to 0..255; uint8 stays as it is.

    Args:
      values: Pixels, in any shape.
      value_range: (low, high), mapped to 0..255 with clipping; None: the range of the
        type, for unsigned integers.

    Returns:
      uint8 of the same shape; NaN becomes 0.

    Raises:
      Unusable: Values are signed or floating-point without a range, or not numbers.
    """
    kind = values.dtype
    if kind == np.uint8:
        return values
    if kind.kind == "b":
        return values * np.uint8(255)
    if kind.kind not in "uif":
        raise Unusable(f"{kind} pixels are not numbers")
    if value_range is None:
        if kind.kind != "u":
            raise Unusable(
                f"{kind.newbyteorder('=')} pixels have no defined range: set "
                "--config.data.value_range='(LOW,HIGH)'"
            )
        value_range = (0, np.iinfo(kind).max)
    if kind == np.uint16 and values.size > 65536:
        return _to_uint8(np.arange(65536, dtype=np.uint16), value_range)[values]
    return _to_uint8(values, value_range)


def _to_uint8(values, value_range):
    low, high = value_range
    exact_in_32 = values.dtype.itemsize <= (4 if values.dtype.kind == "f" else 2)
    x = values.astype(np.float32 if exact_in_32 else np.float64)
    with np.errstate(all="ignore"):
        x -= low
        x *= 255 / (high - low)
        np.clip(x, 0, 255, out=x)
    x[np.isnan(x)] = 0
    return np.rint(x, out=x).astype(np.uint8)
