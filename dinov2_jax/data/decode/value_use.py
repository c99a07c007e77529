"""Detection of images that are nearly black or white after scaling to 8 bits.

Cameras and satellites store 10, 12 or 14 bits in 16-bit files. Scaled by the range of
the type, such images are nearly black. With a `data.value_range` that excludes their
values, they are plain black or white.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax.data.decode import image_decoder

_DARK = 64  # the highest value of 14 bits in 16, scaled to 8
_CLIPPED = 0.99  # share of the values at one end
_SAMPLE = 8  # images that a run checks when it starts


@dataclasses.dataclass(frozen=True)
class RangeUse:
    """How badly an image uses the 256 values of its pixels.

    Attributes:
      dark: Its highest value if scaling makes the image nearly black; else 0.
      clipped: Whether nearly all values lie outside of the given range, at one end.
      loses_bits: Whether the image would be refused with a range, because only 8 of
        its bits can be read.
    """

    dark: int = 0
    clipped: bool = False
    loses_bits: bool = False


def examine(
    opened: image_decoder.OpenedImage, pixels: np.ndarray, value_range: Any
) -> RangeUse:
    """Return how an image uses the range of its values.

    Args:
      opened: The image.
      pixels: Its pixels, uint8 [H, W, C].
      value_range: The decoder's range; None or empty for that of the type.
    """
    if not opened.scaled or not pixels.size:
        return RangeUse()
    if value_range:
        ends = [float(np.mean(pixels == end)) for end in (0, 255)]
        return RangeUse(clipped=max(ends) > _CLIPPED)
    highest = int(pixels.max())
    return RangeUse(
        dark=highest if highest <= _DARK else 0, loses_bits=opened.loses_bits
    )


def describe(uses: Sequence[RangeUse], value_range: Any, fix: str = "") -> list[str]:
    """Return a warning for each kind of bad use among images.

    Args:
      uses: Results of `examine`.
      value_range: The decoder's range, or None.
      fix: What to do about dark images; "" for `data.value_range`.
    """
    lines = []
    dark = [use.dark for use in uses if use.dark]
    if dark:
        # The scaled value is rounded, so subtract half a level.
        bits = math.ceil(math.log2((max(dark) - 0.5) / 255) + 16)
        fix = fix or f"set --config.data.value_range='(0,{2**bits - 1})'"
        if any(use.loses_bits for use in uses if use.dark):
            fix = f"save them as 16-bit TIFF or .npy, then {fix}"
        lines.append(
            f"{len(dark)} of {len(uses)} images are nearly black: they use only "
            f"the lower {bits} of 16 bits; {fix}"
        )
    clipped = sum(use.clipped for use in uses)
    if clipped:
        low, high = value_range
        lines.append(
            f"{clipped} of {len(uses)} images lie outside data.value_range = "
            f"({low:g}, {high:g}): nearly all of their values become 0 or 255; set "
            "--config.data.value_range to the range of the values"
        )
    return lines


def check(source: Any, value_range: Any, fix: str = "") -> list[str]:
    """Return warnings about a few evenly spaced images of a source.

    Only images that are scaled to 8 bits are decoded.

    Args:
      source: A `data.sources.base.Source`.
      value_range: The decoder's range; None or empty for that of the type.
      fix: See `describe`.
    """
    uses = []
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int)):
        try:
            opened = source.open(int(index))
            pixels = opened.pixels() if opened.scaled else np.zeros(0, np.uint8)
            uses.append(examine(opened, pixels, value_range))
        except image_decoder.BadImage:  # replaced and logged during training
            continue
    return describe(uses, value_range, fix)
