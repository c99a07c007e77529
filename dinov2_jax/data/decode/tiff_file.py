"""Reader of TIFFs that Pillow cannot represent or reads wrongly; uses tifffile.

13 satellite bands, slices of a volume, 16-bit colour, signed and floating-point pixels.
"""

from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from dinov2_jax.data.decode import npy_file, pixel_formats, tiff_header, tiff_layout

_PREMULTIPLIED, _ALPHA = 1, 2  # ExtraSamples


def open_tiff(
    file: BinaryIO,
    layout: tiff_layout.Layout,
    *,
    channels: int,
    value_range: tuple[float, float] | None,
    check_size: Callable[[int, int], None],
) -> npy_file.Opened:
    """Read the header of a TIFF.

    Args:
      file: The file.
      layout: The result of `tiff_layout.read`.
      channels: Number of channels, C. 1 and 3: also gray or RGB; others: the samples
        or pages of the file.
      value_range: See `pixel_formats.to_uint8`.
      check_size: Raises `Unusable` if a width and height are too large.

    Raises:
      Unusable: The number of channels is not C, the pages differ, or the kind of
        pixels is not supported.
      Exception: Almost any kind, on damaged bytes.
    """
    tiff = _opened(file)
    page = tiff.pages[0]
    pages = [page]
    if pages_are_channels(layout, channels):
        pages += _further_pages(tiff, page, channels)
    if value_range is None and layout.kind == 1 and layout.bits > 8:
        value_range = (0, 2**layout.bits - 1)
    convert = _converter(layout, channels, len(pages), value_range)
    axes = page.axes
    if page.dtype is None or axes not in ("YX", "YXS", "SYX"):
        raise pixel_formats.Unusable(f"TIFF of {page.dtype} pixels in axes {axes!r}")
    tag = page.tags.get(tiff_header.ORIENTATION)
    orientation = tag.value if tag else 1
    width, height = page.imagewidth, page.imagelength
    check_size(width, height)
    for each in pages:  # whole tiles are allocated, however small the image
        check_size(each.tilewidth, each.tilelength * each.tiledepth)
    if pixel_formats.swaps_sides(orientation):
        width, height = height, width

    def read() -> np.ndarray:
        arrays = []
        for page in pages:
            values = _values(page, layout)
            arrays.append(np.moveaxis(values, 0, -1) if axes == "SYX" else values)
        pixels = convert(np.concatenate([np.atleast_3d(a) for a in arrays], axis=2))
        return pixel_formats.turn(np.ascontiguousarray(pixels), orientation)

    return width, height, read, layout.bits > 8


def pages_are_channels(layout: tiff_layout.Layout, channels: int) -> bool:
    """Return whether each page of a TIFF is a channel.

    This is so if the file says it, or if the model's channels are not gray or RGB.
    """
    if layout.samples != 1 or channels == 1 == layout.channels:
        return False
    return (layout.channels or 1) > 1 or channels not in (1, 3)


def _opened(file: BinaryIO):
    import tifffile  # rarely needed

    file.seek(0)
    return tifffile.TiffFile(file)


def _further_pages(tiff, first, channels: int) -> list:
    """Return pages 1 to C - 1 of a TIFF with exactly C pages of one shape and type."""
    found = _pages_after_first(tiff, channels)
    if first.samplesperpixel != 1 or len(found) != channels - 1:
        many = "more" if len(found) == channels else len(found) + 1
        raise pixel_formats.Unusable(
            f"TIFF of {first.samplesperpixel} samples in {many} pages, expected "
            f"{channels} of either"
        )
    if not all(_alike(page, first) for page in found):
        raise pixel_formats.Unusable("the pages of the TIFF differ")
    return found


def _pages_after_first(tiff, most: int) -> list:
    found = []
    for index in range(1, most + 1):
        try:
            found.append(tiff.pages[index])
        except IndexError:
            break
    return found


def _alike(page, first) -> bool:
    return page.shape == first.shape and page.dtype == first.dtype


def check_pages(file: BinaryIO) -> None:
    """Raise `Unusable` if a TIFF has 3 pages that may be the channels of an image."""
    tiff = _opened(file)
    first, found = tiff.pages[0], _pages_after_first(tiff, 3)
    if len(found) == 2 and all(_alike(page, first) for page in found):
        raise pixel_formats.Unusable(
            "3 gray pages may be 3 channels or 3 images: save them as RGB or with "
            "OME-XML, or as single pages"
        )


def _converter(
    layout: tiff_layout.Layout,
    channels: int,
    pages: int,
    value_range: tuple[float, float] | None,
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from all samples, [H, W, S], to uint8 [H, W, C].

    Raises:
      Unusable: Such pixels are not supported.
    """
    gray = layout.photometric in (
        tiff_layout.WHITE_IS_ZERO,
        tiff_layout.BLACK_IS_ZERO,
    )
    deep_colour = layout.photometric == tiff_layout.RGB and layout.colours == 3
    invert = layout.photometric == tiff_layout.WHITE_IS_ZERO
    scale = _Scale(value_range, invert)
    packed = 1 < layout.bits < 8 or (layout.bits == 1 and layout.samples > 1)
    if packed or layout.photometric == tiff_layout.PALETTE:
        raise _unsupported(layout)
    if layout.deep_jpeg_2000:
        raise _unsupported(layout, " in JPEG 2000")
    if channels in (1, 3) and pages == 1:
        if deep_colour or (gray and layout.colours == 1):
            return _colour_converter(layout, channels, scale)
        if not (gray or layout.photometric is None) or layout.samples == 1:
            raise _unsupported(layout)
    if pages == 1 and layout.samples != channels:
        raise pixel_formats.Unusable(
            f"TIFF of {layout.samples} samples in 1 pages, expected {channels} of "
            "either"
        )
    return scale


class _Scale:
    """Conversion of samples to uint8, one by one."""

    def __init__(self, value_range: tuple[float, float] | None, invert: bool):
        self._value_range, self._invert = value_range, invert

    def __call__(self, values: np.ndarray) -> np.ndarray:
        pixels = pixel_formats.to_uint8(values, self._value_range)
        return 255 - pixels if self._invert else pixels


def _colour_converter(layout, channels, scale):
    colours = layout.colours
    alphas = [
        i for i, kind in enumerate(layout.extra) if kind in (_PREMULTIPLIED, _ALPHA)
    ]
    if alphas and (layout.kind != 1 or layout.photometric == tiff_layout.WHITE_IS_ZERO):
        raise _unsupported(layout, " with alpha")

    def convert(values: np.ndarray) -> np.ndarray:
        pixels = scale(values[:, :, :colours])
        if alphas:
            alpha = values[:, :, colours + alphas[0]]
            alpha = pixel_formats.to_uint8(alpha, (0, 2**layout.bits - 1))
            premultiplied = layout.extra[alphas[0]] == _PREMULTIPLIED
            pixels = pixel_formats.over_white(pixels, alpha, premultiplied)
        return pixel_formats.gray_or_rgb(pixels, channels)

    return convert


def _unsupported(layout: tiff_layout.Layout, more: str = ""):
    return pixel_formats.Unusable(
        f"{layout.describe()}{more} is not supported: save it as 8-bit gray or RGB"
    )


def _values(page, layout: tiff_layout.Layout) -> np.ndarray:
    """Read the samples of a page."""
    import tifffile

    try:
        return page.asarray(maxworkers=1)
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        what = layout.describe()
        if page.compression != 1:
            what = f"{tifffile.COMPRESSION(page.compression).name} compression in TIFF"
        raise pixel_formats.Unusable(
            f"{what} needs: pip install imagecodecs"
        ) from error
