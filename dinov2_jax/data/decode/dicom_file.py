"""Medical images in DICOM files, read by pydicom (the extra `dicom`).

Values are in the units of the modality (Hounsfield units in CT): the stored values
after the rescale slope and intercept. MONOCHROME1 is inverted, so that high values are
bright. A window (WindowCenter, WindowWidth) is for viewing and not applied.
"""

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from dinov2_jax.data.decode import npy_file, pixel_formats

_GRAY = ("MONOCHROME1", "MONOCHROME2")


def open_dicom(
    file: BinaryIO,
    *,
    channels: int,
    value_range: tuple[float, float] | None,
    check_size: Callable[[int, int], None],
) -> npy_file.Opened:
    """Read the header of a DICOM file with one frame.

    Args:
      file: The file.
      channels: Number of channels, C; 1 for luma or 3 for RGB.
      value_range: See `pixel_formats.to_uint8`; None for the range of the stored bits,
        if the values are stored unsigned and not rescaled.
      check_size: Raises `Unusable` if a width and height are too large.

    Returns:
      The width, the height, a function that reads uint8 [H, W, C], and whether that
      scales values to 8 bits.

    Raises:
      Unusable: pydicom is missing, or this kind of file is not supported.
      Exception: Almost any kind, on damaged bytes.
    """
    try:
        import pydicom
    except ImportError as error:
        raise pixel_formats.Unusable(
            "is a DICOM file: pip install 'dinov2-jax[dicom]'"
        ) from error
    file.seek(0)
    header = pydicom.dcmread(file, stop_before_pixels=True)
    _check(header, channels)
    width, height = int(header.Columns), int(header.Rows)
    check_size(width, height)
    if value_range is None and header.PhotometricInterpretation in _GRAY:
        value_range = _stored_range(header)

    def read() -> np.ndarray:
        file.seek(0)
        dataset = pydicom.dcmread(file)
        pixels = _pixels(dataset, value_range)
        return pixel_formats.gray_or_rgb(np.ascontiguousarray(pixels), channels)

    return width, height, read, header.BitsAllocated > 8


def _check(header: Any, channels: int) -> None:
    """Raise `Unusable` if this kind of file is not supported."""
    if "Rows" not in header or "PhotometricInterpretation" not in header:
        raise pixel_formats.Unusable("is a DICOM file without an image")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise pixel_formats.Unusable(
            f"is a DICOM file of {frames} frames: save each as a separate file"
        )
    if channels not in (1, 3):
        raise pixel_formats.Unusable(
            f"{header.SamplesPerPixel} channels (DICOM), expected {channels}"
        )


def _stored_range(header: Any) -> tuple[float, float] | None:
    """Return the range of unsigned stored bits; None if values have another meaning."""
    slope = float(header.get("RescaleSlope") or 1)
    intercept = float(header.get("RescaleIntercept") or 0)
    rescaled = (slope, intercept) != (1, 0) or "ModalityLUTSequence" in header
    if rescaled or int(header.get("PixelRepresentation") or 0):
        return None
    return 0, 2 ** int(header.BitsStored) - 1


def _pixels(dataset: Any, value_range: tuple[float, float] | None) -> np.ndarray:
    """Return uint8 [H, W, 1] or [H, W, 3]."""
    from pydicom import pixels as pydicom_pixels

    photometric = dataset.PhotometricInterpretation
    try:
        values = pydicom_pixels.pixel_array(dataset)
    except (RuntimeError, NotImplementedError) as error:
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise pixel_formats.Unusable(
            f"{syntax} in DICOM needs: pip install 'pylibjpeg[all]'"
        ) from error
    if photometric in _GRAY:
        values = pydicom_pixels.apply_modality_lut(values, dataset)
        if value_range is None:
            raise pixel_formats.Unusable(
                "DICOM values that are signed or rescaled (CT: Hounsfield units): set "
                "--config.data.value_range='(LOW,HIGH)'"
            )
        # Bytes are scaled too: their values may use fewer bits.
        wide = values.astype(np.float32) if values.dtype == np.uint8 else values
        pixels = pixel_formats.to_uint8(wide, value_range)[:, :, None]
        return 255 - pixels if photometric == "MONOCHROME1" else pixels
    if photometric == "PALETTE COLOR":
        values = pydicom_pixels.apply_color_lut(values, dataset)
        return pixel_formats.to_uint8(values, None)
    if photometric in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"):
        if values.dtype != np.uint8:
            raise pixel_formats.Unusable(f"DICOM of {values.dtype} colour")
        return values
    raise pixel_formats.Unusable(f"DICOM of {photometric} pixels is not supported")
