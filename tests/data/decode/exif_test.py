"""Orientation where formats keep it: after a PNG's pixels, in text, in AVIF boxes."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from dinov2_jax.data.decode import exif, image_decoder

UPRIGHT = np.kron(
    np.random.default_rng(0).integers(60, 190, (3, 5, 3), np.uint8),
    np.ones((16, 16, 1), np.uint8),
)
STORED = np.ascontiguousarray(UPRIGHT.transpose(1, 0, 2)[::-1])  # 6: row 0 is right


def encode(kind, **options):
    stream = io.BytesIO()
    Image.fromarray(STORED).save(stream, kind, **options)
    return stream.getvalue()


def mark(value=6):
    block = Image.Exif()
    block[0x0112] = value
    return block.tobytes()


def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def check(content, tolerance=0):
    opened = image_decoder.Decoder().open(content, name="x")
    assert (opened.width, opened.height) == (80, 48)
    for _ in range(2):
        assert np.abs(opened.pixels().astype(int) - UPRIGHT).max() <= tolerance
    decoder = image_decoder.Decoder(exif_orientation=False)
    assert decoder.decode(content, name="x").shape == (80, 48, 3)


def test_exif_after_the_pixels_of_a_png():
    plain, end = encode("PNG"), chunk(b"IEND", b"")
    assert plain.endswith(end)
    block = mark().removeprefix(b"Exif\0\0")
    check(plain.removesuffix(end) + chunk(b"eXIf", block) + end)
    check(plain[:33] + chunk(b"eXIf", block) + plain[33:])  # before them


def test_exif_that_imagemagick_writes_as_text():
    block = mark()
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    plain = encode("PNG")
    data = b"Raw profile type exif\0\0" + zlib.compress(text)
    check(plain[:33] + chunk(b"zTXt", data) + plain[33:])


def test_a_cut_png_has_no_orientation():
    content = encode("PNG")
    for at in (9, 33, 60, len(content) - 5):
        assert exif._png_exif(io.BytesIO(content[:at])) == b""


def test_avif_is_turned_by_its_boxes():
    # Pillow stores the orientation as the boxes irot and imir.
    check(encode("AVIF", quality=100, subsampling="4:4:4", exif=mark()), tolerance=6)


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_no_mark_is_upright(kind):
    content = encode(kind, lossless=True)
    pixels = image_decoder.Decoder().decode(content, name="x")
    np.testing.assert_array_equal(pixels, STORED)


def xmp(orientation):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/'
        '02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/'
        f'1.0/"{orientation}</rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


def with_xmp(kind, packet, **options):
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
        return encode("PNG", pnginfo=info, **options)
    quality = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    return encode(kind, xmp=packet, **quality, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_in_xmp_alone(kind):
    for value in range(1, 9):
        forms = (
            f' tiff:Orientation="{value}">',
            f"><tiff:Orientation>{value}</tiff:Orientation>",
        )
        for form in forms:
            content = with_xmp(kind, xmp(form))
            image = Image.open(io.BytesIO(content))
            upright = np.asarray(ImageOps.exif_transpose(image))
            pixels = image_decoder.Decoder().decode(content, name="x")
            np.testing.assert_array_equal(pixels, upright)
    decoder = image_decoder.Decoder(exif_orientation=False)
    assert decoder.decode(content, name="x").shape == (80, 48, 3)


def test_exif_holds_against_xmp():
    content = with_xmp("PNG", xmp(' tiff:Orientation="3">'), exif=mark())
    check(content)
    content = with_xmp("PNG", xmp(' tiff:Orientation="3">'), exif=mark(1))
    pixels = image_decoder.Decoder().decode(content, name="x")
    np.testing.assert_array_equal(pixels, STORED)
