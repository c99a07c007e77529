"""DICOM: rescaled values, inverted MONOCHROME1, colours, what is refused."""

import io
import struct
import sys

import numpy as np
import pytest

from dinov2_jax.data.decode import image_decoder


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)  # its import fails
    content = bytes(128) + b"DICM" + bytes(100)
    with pytest.raises(image_decoder.BadImage) as caught:
        image_decoder.Decoder().decode(content, name="IMG_1.jpg")
    said = "IMG_1.jpg: is a DICOM file: pip install 'dinov2-jax[dicom]'"
    assert str(caught.value) == said


def element(group, number, kind, value):
    """A data element in explicit little-endian form."""
    value += b"" if len(value) % 2 == 0 else (b" " if kind in TEXT else b"\0")
    head = struct.pack("<HH", group, number) + kind.encode()
    if kind in ("OB", "OW"):
        return head + bytes(2) + struct.pack("<I", len(value)) + value
    return head + struct.pack("<H", len(value)) + value


TEXT = ("CS", "IS", "DS")


def dicom(array, photometric, *, bits=None, slope=None, intercept=None, frames=None):
    """A DICOM file, byte by byte from the standard's part 5."""
    array = np.asarray(array)
    stored = array.dtype.itemsize * 8

    def short(value):
        return struct.pack("<H", value)

    meta = element(2, 0x10, "UI", b"1.2.840.10008.1.2.1")
    meta = element(2, 0, "UL", struct.pack("<I", len(meta))) + meta
    body = element(0x28, 2, "US", short(3 if array.ndim == 3 else 1))
    body += element(0x28, 4, "CS", photometric.encode())
    if array.ndim == 3:
        body += element(0x28, 6, "US", short(0))
    if frames:
        body += element(0x28, 8, "IS", str(frames).encode())
    body += element(0x28, 0x10, "US", short(array.shape[0]))
    body += element(0x28, 0x11, "US", short(array.shape[1]))
    body += element(0x28, 0x100, "US", short(stored))
    body += element(0x28, 0x101, "US", short(bits or stored))
    body += element(0x28, 0x102, "US", short((bits or stored) - 1))
    body += element(0x28, 0x103, "US", short(array.dtype.kind == "i"))
    if intercept is not None:
        body += element(0x28, 0x1052, "DS", str(intercept).encode())
        body += element(0x28, 0x1053, "DS", str(slope).encode())
    body += element(0x7FE0, 0x10, "OW", array.tobytes())
    return bytes(128) + b"DICM" + meta + body


def decode(content, channels=3, value_range=None):
    pytest.importorskip("pydicom")
    decoder = image_decoder.Decoder(channels=channels, value_range=value_range)
    opened = decoder.open(content, name="x")
    pixels = opened.pixels()
    assert pixels.shape == (opened.height, opened.width, channels)
    np.testing.assert_array_equal(opened.pixels(), pixels)
    return pixels


STORED = np.random.default_rng(0).integers(0, 4096, (6, 8), np.uint16)


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_in_the_range_of_its_bits(channels):
    want = STORED[:, :, None] / 4095 * 255
    pixels = decode(dicom(STORED, "MONOCHROME2", bits=12), channels)
    assert np.abs(pixels - want).max() <= 0.51
    pixels = decode(dicom(STORED, "MONOCHROME1", bits=12), channels)
    assert np.abs(pixels - (255 - want)).max() <= 0.51


def test_hounsfield_units():
    content = dicom(STORED, "MONOCHROME2", bits=12, slope=2, intercept=-1024)
    want = np.clip((2.0 * STORED - 1024 + 1000) / 2000, 0, 1) * 255
    pixels = decode(content, 1, (-1000, 1000))[:, :, 0]
    assert np.abs(pixels - want).max() <= 0.51
    with pytest.raises(image_decoder.BadImage, match="Hounsfield.*data.value_range="):
        decode(content)


def test_signed_values_need_a_range():
    content = dicom(STORED.astype(np.int16) - 2000, "MONOCHROME2")
    with pytest.raises(image_decoder.BadImage, match="data.value_range="):
        decode(content)
    want = np.clip((STORED - 2000.0 + 500) / 1000, 0, 1) * 255
    pixels = decode(content, 1, (-500, 500))[:, :, 0]
    assert np.abs(pixels - want).max() <= 0.51


def test_colour():
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    np.testing.assert_array_equal(decode(dicom(rgb, "RGB")), rgb)
    gray = np.zeros((6, 8, 3), np.uint8) + np.array([77, 128, 128], np.uint8)
    np.testing.assert_array_equal(decode(dicom(gray, "YBR_FULL")), 77)


def test_what_is_refused():
    for content, channels, reason in (
        (dicom(STORED, "MONOCHROME2", frames=30), 3, "30 frames: save each as a"),
        (dicom(STORED, "MONOCHROME2"), 4, r"1 channels \(DICOM\), expected 4"),
        (dicom(STORED, "MONOCHROME2")[:-9], 3, "cannot be decoded|needs"),
        (dicom(STORED, "MONOCHROME2")[:200], 3, "without an image|cannot be"),
    ):
        with pytest.raises(image_decoder.BadImage, match=reason):
            decode(content, channels)


def test_too_many_pixels():
    pytest.importorskip("pydicom")
    content = dicom(STORED, "MONOCHROME2")
    with pytest.raises(image_decoder.BadImage, match="8x6 px is more than max_pixels"):
        image_decoder.Decoder(max_pixels=40).open(content, name="x")


def test_against_a_peer():
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(dicom(STORED, "MONOCHROME2", bits=12)))
    np.testing.assert_array_equal(dataset.pixel_array, STORED)
