"""Decoding: a folder of horrors, each kind against the pixels it must give."""

import io
import os
import pathlib
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from configs import default
from dinov2_jax.data.decode import image_decoder

LIMIT = 10_000


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(content):
    return image_decoder.Decoder(LIMIT).decode(content, name="x")


def rgb(height=7, width=5):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb(kind):
    np.testing.assert_array_equal(decode(encode(Image.fromarray(rgb()), kind)), rgb())


def test_lossless_webp():
    content = encode(Image.fromarray(rgb()), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode(content), rgb())


def test_path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.fromarray(rgb()), "PNG"))
    np.testing.assert_array_equal(
        image_decoder.Decoder(LIMIT).decode(path, name="x"), rgb()
    )


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
    "float": (float_tiff(), "float32 pixels have no defined range: set"),
    "32 bit": (
        encode(Image.fromarray(np.array([[70_000]], np.int32)), "TIFF"),
        "int32 pixels have no defined range: set",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad(kind):
    content, reason = BAD[kind]
    with pytest.raises(image_decoder.BadImage, match=reason) as caught:
        decode(content)
    assert caught.value.name == "x"
    assert 0 < len(caught.value.reason) < 140 and "\n" not in caught.value.reason
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.name, copy.reason) == ("x", caught.value.reason)


def test_missing_file(tmp_path):
    with pytest.raises(image_decoder.BadImage, match="No such file"):
        image_decoder.Decoder(LIMIT).decode(tmp_path / "no.png", name="no.png")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    folder = pathlib.Path(tempfile.mkdtemp())  # a socket's path must be short
    fifo, unix = folder / "a.jpg", folder / "b.jpg"
    os.mkfifo(fifo)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(unix))
    for path, kind in [
        (fifo, "a FIFO"),
        (unix, "a socket"),
        (folder, "a folder"),
        ("/dev/zero", "a device"),
        ("/dev/null", "a device"),
    ]:
        with pytest.raises(image_decoder.BadImage, match=f"x: is {kind}, not a file"):
            image_decoder.Decoder().decode(path, name="x")
    bound.close()
    shutil.rmtree(folder)


def test_a_fifo_that_took_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(jpeg())
    status = os.stat(tmp_path / "b.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda path: status)
        with pytest.raises(image_decoder.BadImage, match="x: empty file"):
            image_decoder.Decoder().decode(tmp_path / "a.jpg", name="x")


@pytest.mark.parametrize("start", [b"", jpeg()[:500], huge_png(9)])
def test_a_huge_file_is_not_read(tmp_path, start):
    path = tmp_path / "huge.jpg"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(100 * 2**30)
    with pytest.raises(
        image_decoder.BadImage, match="107374182400 bytes is too large for images"
    ):
        image_decoder.Decoder().decode(path, name="x")


GROWN = """
import sys
from PIL import Image
from dinov2_jax.data.decode import image_decoder

def peak():  # not ru_maxrss, which begins with that of the parent
    line = [x for x in open("/proc/self/status") if x.startswith("VmHWM")][0]
    return int(line.split()[1])

Image.init()
before, said = peak(), "decoded"
try:
    image_decoder.Decoder(int(sys.argv[1])).decode(sys.argv[2], name="x")
except image_decoder.BadImage as error:
    said = error.reason
print(peak() - before, said)
"""


def grown(limit, path):
    """KiB that the memory of a new process grew by at a file, and what became of it."""
    command = [sys.executable, "-W", "ignore", "-c", GROWN, str(limit), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, said = done.stdout.strip().split(" ", 1)
    return int(size), said


def test_a_large_file_is_read_only_after_its_header(tmp_path):
    content = encode(Image.fromarray(rgb(100, 100)), "PNG")
    path = tmp_path / "large.png"
    sizes = {}
    for start, became in [
        (content, "decoded"),
        (b"no image", "not an image"),
        (huge_png(101), "max_pixels"),
    ]:
        path.write_bytes(start)
        os.truncate(path, 2**26)  # zeros, which PNG allows
        sizes[became], said = grown(LIMIT, path)
        assert became in said
    # KiB, of 2**16 in the file; memory that imports freed is used again first.
    whole = sizes.pop("decoded")
    assert whole > 2**13 and max(sizes.values()) < whole / 2
    path.write_bytes(content + bytes(2**23))  # which PNG allows
    decoded = image_decoder.Decoder(LIMIT).decode(path, name="x")
    np.testing.assert_array_equal(decoded, rgb(100, 100))


def test_only_known_formats_are_opened():
    postscript = encode(Image.fromarray(rgb()), "EPS")  # would start Ghostscript
    with pytest.raises(image_decoder.BadImage, match="is a PostScript file, which is"):
        decode(postscript)
    with pytest.raises(image_decoder.BadImage, match="not an image.*JPEG, PNG"):
        decode(encode(Image.fromarray(rgb()), "PCX"))


def test_a_huge_canvas_is_refused_without_its_memory(tmp_path):
    small = encode(Image.new("RGB", (300, 300)), "WEBP", lossless=True)
    at = small.index(b"VP8L") + 9
    assert int.from_bytes(small[at : at + 2], "little") & 0x3FFF == 299
    bits = int.from_bytes(small[at : at + 4], "little") & 0xF0000000
    bits |= (12_999 << 14) | 12_999  # sides less 1
    content = small[:at] + bits.to_bytes(4, "little") + small[at + 4 :]
    (tmp_path / "small.webp").write_bytes(small)
    (tmp_path / "huge.webp").write_bytes(content)
    assert grown(90_000, tmp_path / "small.webp")[1] == "decoded"
    size, reason = grown(90_000, tmp_path / "huge.webp")
    assert "13000x13000 px is more" in reason
    assert size < 13_000**2 * 3 / 2**10 / 2  # KiB, half of its pixels


def test_the_header_is_parsed_once(monkeypatch):
    opened_by_pillow = []
    real = Image.open

    def open_(*args, **options):
        opened_by_pillow.append(args)
        return real(*args, **options)

    monkeypatch.setattr(Image, "open", open_)
    opened = image_decoder.Decoder().open(jpeg(), name="x")
    first = opened.pixels()
    assert len(opened_by_pillow) == 1
    np.testing.assert_array_equal(opened.pixels(), first)
    assert len(opened_by_pillow) == 2


def test_images_that_pillow_has_opened():
    image = Image.fromarray(rgb(), "RGB").convert("CMYK")
    decoded = image_decoder.Decoder().from_pillow(image, name="x")
    np.testing.assert_array_equal(decoded, rgb())
    with pytest.raises(image_decoder.BadImage, match="x: float32 pixels"):
        image_decoder.Decoder().from_pillow(Image.new("F", (3, 3)), name="x")


def test_the_decoder_of_a_configuration():
    config = default.get_config()
    assert image_decoder.make_decoder(config) == image_decoder.Decoder()
    config.data.max_pixels, config.data.exif_orientation = 9, False
    config.model.in_chans, config.data.value_range = 13, (0, 10_000)
    assert image_decoder.make_decoder(config) == image_decoder.Decoder(
        9, 13, False, (0, 10_000)
    )


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
            except image_decoder.BadImage:
                pass


def test_no_warnings(tmp_path):
    palette = Image.new("P", (4, 4))
    palette.putpalette([1, 2, 3] * 256)
    path = tmp_path / "p.png"
    palette.save(path, transparency=bytes([0, 128, 255]))
    (tmp_path / "big.png").write_bytes(huge_png(10_000))
    code = (
        "import sys; from dinov2_jax.data.decode import image_decoder, pillow_setup\n"
        "pillow_setup.configure()\n"
        "image_decoder.Decoder(99).decode(sys.argv[1], name='')\n"
        "try: image_decoder.Decoder(99).decode(sys.argv[2], name='')\n"
        "except image_decoder.BadImage: pass\n"
        "assert 'jax' not in sys.modules and 'grain' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "big.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""
