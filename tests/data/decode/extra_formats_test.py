"""AVIF, HEIC and JPEG XL: read where their library is, else named with what to do."""

import importlib.util
import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinov2_jax.data.decode import extra_formats, file_kinds, image_decoder

UPRIGHT = np.kron(
    np.random.default_rng(0).integers(60, 190, (3, 5, 3), np.uint8),
    np.ones((16, 16, 1), np.uint8),
)
HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
JPEG_XL = b"\xff\x0a" + bytes(100)

needs_heif = pytest.mark.skipif(
    not importlib.util.find_spec("pillow_heif"), reason="needs the extra heif"
)
needs_jxl = pytest.mark.skipif(
    not importlib.util.find_spec("pillow_jxl"), reason="needs the extra jxl"
)


def exif(value):
    block = Image.Exif()
    block[0x0112] = value
    return block


def encode(pixels, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def close(content, want, tolerance=8, **fields):
    opened = image_decoder.Decoder(**fields).open(content, name="x")
    assert (opened.height, opened.width) == want.shape[:2]
    for _ in range(2):
        assert np.abs(opened.pixels().astype(int) - want).max() <= tolerance


@pytest.mark.parametrize(
    "content, module, reason",
    [
        (HEIC, "pillow_heif", "is a HEIC file: pip install 'dinov2-jax[heif]'"),
        (JPEG_XL, "pillow_jxl", "is a JPEG XL file: pip install 'dinov2-jax[jxl]'"),
    ],
)
def test_without_the_extra(content, module, reason, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)  # its import fails
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(content)
    with pytest.raises(image_decoder.BadImage) as caught:
        image_decoder.Decoder().decode(path, name="IMG_1.jpg")
    assert str(caught.value) == f"IMG_1.jpg: {reason}"


def test_avif():
    lossless = dict(quality=100, subsampling="4:4:4")
    close(encode(UPRIGHT, "AVIF", **lossless), UPRIGHT)
    luma = np.asarray(Image.fromarray(UPRIGHT).convert("L"))[:, :, None]
    close(encode(UPRIGHT, "AVIF", **lossless), luma, channels=1)
    content = encode(UPRIGHT, "AVIF")
    with pytest.raises(image_decoder.BadImage, match="80x48 px is more than max_pix"):
        image_decoder.Decoder(max_pixels=99).open(content, name="x")
    for cut in (30, 200, len(content) - 20):
        with pytest.raises(image_decoder.BadImage):
            image_decoder.Decoder().decode(content[:cut], name="x")


@needs_heif
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_heic_is_turned_once(orientation):
    import pillow_heif

    pillow_heif.register_heif_opener()  # to write
    lossless = dict(quality=100, chroma=444)
    close(encode(UPRIGHT, "HEIF", **lossless), UPRIGHT)
    # The writer turns EXIF into the boxes irot and imir, and keeps it as well.
    marked = encode(UPRIGHT, "HEIF", exif=exif(orientation).tobytes(), **lossless)
    turned = Image.fromarray(UPRIGHT)
    turned.getexif()[0x0112] = orientation
    close(marked, np.asarray(ImageOps.exif_transpose(turned)))
    with pytest.raises(image_decoder.BadImage, match="px is more than max_pixels"):
        image_decoder.Decoder(max_pixels=99).open(marked, name="x")


@needs_jxl
def test_jpeg_xl():
    import pillow_jxl  # noqa: F401

    content = encode(UPRIGHT, "JXL", lossless=True)
    close(content, UPRIGHT, tolerance=0)
    # EXIF does not count: the header of the codestream says that it is upright.
    marked = encode(UPRIGHT, "JXL", lossless=True, exif=exif(6).tobytes())
    close(marked, UPRIGHT, tolerance=0)
    with pytest.raises(image_decoder.BadImage, match="80x48 px is more than max_pix"):
        image_decoder.Decoder(max_pixels=99).open(content, name="x")


@needs_jxl
@pytest.mark.parametrize("size", [(8, 8), (256, 256), (300, 200), (7, 511), (999, 1)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_in_a_jpeg_xl_header(size, container):
    import pillow_jxl  # noqa: F401

    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    content = encode(pixels, "JXL", effort=1, use_container=container)
    assert file_kinds.name_kind(content)[0] == file_kinds.JPEG_XL
    assert extra_formats.jpeg_xl_size(io.BytesIO(content)) == size


@pytest.mark.parametrize(
    "bits, size",
    [
        # SizeHeader by hand, the lowest bit first: small, then each side / 8 - 1.
        ([(1, 1), (3, 5), (0, 3), (4, 5)], (40, 32)),
        ([(1, 1), (3, 5), (1, 3)], (32, 32)),  # square
        ([(0, 1), (1, 2), (599, 13), (3, 3)], (800, 600)),  # 4 to 3
        ([(0, 1), (2, 2), (99_999, 18), (0, 3), (0, 2), (6, 9)], (7, 100_000)),
    ],
)
def test_a_jpeg_xl_size_bit_by_bit(bits, size):
    value = at = 0
    for number, count in bits:
        value |= number << at
        at += count
    content = b"\xff\x0a" + value.to_bytes(16, "little")
    assert extra_formats.jpeg_xl_size(io.BytesIO(content)) == size
    boxed = struct.pack(">I4s", 12, b"JXL ") + b"\r\n\x87\n"
    boxed += struct.pack(">I4sI", 12 + len(content), b"jxlp", 0) + content
    assert extra_formats.jpeg_xl_size(io.BytesIO(boxed)) == size
