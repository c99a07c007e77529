"""Decoding: a folder of horrors, each kind against the pixels it must give."""

import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinov2_jax.data import images

LIMIT = 10_000


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(content):
    return images.Decoder(LIMIT).decode(content, name="x")


def rgb(height=7, width=5):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb(kind):
    np.testing.assert_array_equal(decode(encode(Image.fromarray(rgb()), kind)), rgb())


def test_lossless_webp():
    content = encode(Image.fromarray(rgb()), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode(content), rgb())


def test_jpeg_and_its_orientation_is_ignored():
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    decoded = decode(encode(Image.fromarray(pixels), "JPEG", quality=95, exif=exif))
    assert decoded.shape == (16, 32, 3)
    assert np.abs(decoded.astype(int) - pixels).max() < 8


def test_path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(rgb()), "PNG"))
    np.testing.assert_array_equal(images.Decoder(LIMIT).decode(path, name="x"), rgb())


def test_gray_and_bilevel():
    gray = rgb()[:, :, 0]
    want = np.repeat(gray[:, :, None], 3, 2)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(gray), "PNG")), want)
    bits = Image.fromarray(gray).point(lambda v: 255 * (v > 99)).convert("1")
    want = np.repeat(((gray > 99) * 255)[:, :, None], 3, 2)
    np.testing.assert_array_equal(decode(encode(bits, "PNG")), want)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled(kind):
    gray = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    decoded = decode(encode(Image.fromarray(gray), kind))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 1, 100, 255])
    assert decoded.shape == (1, 6, 3)


def test_palette_and_first_frame():
    red, blue = (Image.new("RGB", (4, 3), c) for c in ("red", "blue"))
    decoded = decode(encode(red, "GIF", save_all=True, append_images=[blue]))
    np.testing.assert_array_equal(decoded, np.asarray(red))
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decode(encode(palette, "PNG")), np.asarray(red))


def test_alpha_lies_over_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    decoded = decode(encode(Image.fromarray(pixels), "PNG"))
    assert decoded[0, :2].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert np.abs(decoded[0, 2].astype(int) - 127).max() <= 1
    decoded = decode(encode(Image.fromarray(pixels).convert("LA"), "PNG"))
    assert decoded[0, 1].tolist() == [255, 255, 255]


def test_palette_with_transparent_colour():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([9, 8, 7, 1, 2, 3])
    decoded = decode(encode(image, "PNG", transparency=1))
    assert decoded.tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_cmyk():
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(decode(encode(ink, kind)).astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_thin(size):
    decoded = decode(encode(Image.new("RGB", size, "red"), "PNG"))
    assert decoded.shape == (size[1], size[0], 3)


def huge_png(side):
    """A PNG of a few bytes whose header claims side x side pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = (
        chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def float_tiff():
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.ones((4, 4), np.float32))
    return stream.getvalue()


def jpeg():
    return encode(Image.fromarray(rgb(90, 90)), "JPEG")


BAD = {
    "empty": (b"", "empty file"),
    "text": (b"hello, I am a text\n" * 9, "not an image"),
    "truncated jpeg": (jpeg()[:2000], "truncated"),
    "header only": (jpeg()[:300], "cannot be decoded"),
    "truncated png": (encode(Image.fromarray(rgb(90, 90)), "PNG")[:-9000], "truncated"),
    "above the limit": (huge_png(101), "101x101 px is more than max_pixels = 10000"),
    "bomb": (huge_png(60_000), "more"),
    "float": (float_tiff(), "floating-point"),
    "32 bit": (
        encode(Image.fromarray(np.array([[70_000]], np.int32)), "TIFF"),
        "32-bit integer",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad(kind):
    content, reason = BAD[kind]
    with pytest.raises(images.BadImage, match=reason) as caught:
        decode(content)
    assert caught.value.name == "x"
    assert 0 < len(caught.value.reason) < 140 and "\n" not in caught.value.reason
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.name, copy.reason) == ("x", caught.value.reason)


def test_missing_file(tmp_path):
    with pytest.raises(images.BadImage, match="No such file"):
        images.Decoder(LIMIT).decode(tmp_path / "no.png", name="no.png")


@pytest.mark.filterwarnings("ignore")
def test_random_damage_is_never_another_error():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rgb(40, 40))
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        content = np.frombuffer(encode(picture, kind), np.uint8)
        for _ in range(60):
            damaged = content.copy()
            places = rng.integers(0, len(content), 5)
            damaged[places] = rng.integers(0, 256, 5)
            try:
                assert decode(damaged.tobytes()).dtype == np.uint8
            except images.BadImage:
                pass


def test_no_warnings(tmp_path):
    palette = Image.new("P", (4, 4))
    palette.putpalette([1, 2, 3] * 256)
    path = tmp_path / "p.png"
    palette.save(path, transparency=bytes([0, 128, 255]))
    (tmp_path / "big.png").write_bytes(huge_png(10_000))
    code = (
        "import sys; from dinov2_jax.data import images\n"
        "images.Decoder(99).decode(sys.argv[1], name='')\n"
        "try: images.Decoder(99).decode(sys.argv[2], name='')\n"
        "except images.BadImage: pass\n"
        "assert 'jax' not in sys.modules and 'grain' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "big.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""
