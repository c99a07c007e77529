"""JPEG 2000: exact where it was written without loss, else refused by its header."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import image_decoder, jpeg2000_file

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (21, 34, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (21, 34), np.uint16)
SIZES = b"\xff\x4f\xff\x51"


def encode(pixels, mode, **options):
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    assert image.mode == mode
    image.save(stream, "JPEG2000", irreversible=False, **options)
    return stream.getvalue()


def decode(content, channels=3):
    opened = image_decoder.Decoder(channels=channels).open(content, name="x")
    pixels = opened.pixels()
    assert (opened.height, opened.width) == pixels.shape[:2]
    np.testing.assert_array_equal(opened.pixels(), pixels)
    return pixels


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"num_resolutions": 1}])
def test_equals_what_was_written(options):
    np.testing.assert_array_equal(decode(encode(RGB, "RGB", **options)), RGB)
    gray = decode(encode(RGB[..., 0], "L", **options))
    np.testing.assert_array_equal(gray, RGB[..., :1].repeat(3, axis=2))
    deep = decode(encode(DEEP, "I;16", **options), channels=1)[..., 0]
    np.testing.assert_array_equal(deep, np.rint(DEEP / 257.0))


def test_alpha_lies_over_white_or_is_a_channel():
    rgba = np.concatenate([RGB, RGB[::-1, :, :1]], axis=2)
    content = encode(rgba, "RGBA")
    np.testing.assert_array_equal(decode(content, channels=4), rgba)
    opacity = rgba[..., 3:] / 255
    blended = rgba[..., :3] * opacity + 255 * (1 - opacity)
    assert np.abs(decode(content) - blended).max() <= 1


def changed(content, offset, value):
    """Change a byte of the first segment of the codestream."""
    at = content.index(SIZES) + offset
    return content[:at] + bytes([value]) + content[at + 1 :]


PLAIN, RAW = encode(RGB, "RGB"), encode(RGB[..., 0], "L", no_jp2=True)
COLOUR = PLAIN.index(b"colr") + 7


@pytest.mark.parametrize(
    "content, reason",
    [
        (changed(RAW, 42, 0x87), "signed samples"),
        (changed(RAW, 42, 11), "12-bit samples"),
        (changed(PLAIN, 42, 15), "8- and 16-bit colour samples"),
        (changed(PLAIN, 46, 2), "subsampled channels"),
        (
            PLAIN[:COLOUR] + struct.pack(">I", 18) + PLAIN[COLOUR + 4 :],
            "the colour space 18",
        ),
        (PLAIN[: PLAIN.index(SIZES) + 30], "cannot be decoded"),
        (PLAIN[:-300], "cannot be decoded"),
    ],
)
def test_others_are_refused(content, reason):
    with pytest.raises(image_decoder.BadImage, match=reason):
        decode(content)


def test_a_bomb_is_refused_by_its_header():
    content = changed(RAW, 8, 0x7F)  # the highest byte of the width
    with pytest.raises(image_decoder.BadImage, match="max_pixels"):
        decode(content)


def test_nested_boxes_are_read_once():
    # Every second box claims to hold the rest of the file, as does what follows its
    # parent, so without a limit the rest would be read twice at each of 32 levels.
    boxes = struct.pack(">I4sI4s", 16, b"jp2h", 2**31, b"jp2h") * 32
    signature = b"\0\0\0\x0cjP  \r\n\x87\n"
    with pytest.raises(image_decoder.BadImage, match="no JPEG 2000 codestream"):
        decode(signature + boxes)


def test_a_box_that_reaches_past_its_parent_is_cut_off(monkeypatch):
    reads = []
    codestream = jpeg2000_file._codestream
    monkeypatch.setattr(
        jpeg2000_file, "_codestream", lambda *a: reads.append(a) or codestream(*a)
    )
    inner = struct.pack(">I4s", 2**31, b"jp2h") + struct.pack(">I4s", 8, b"free")
    outer = struct.pack(">I4s", 8 + len(inner), b"jp2h") + inner
    at = PLAIN.index(b"jp2h") - 4
    content = PLAIN[:at] + outer + PLAIN[at:]
    np.testing.assert_array_equal(
        jpeg2000_file._read(io.BytesIO(content)).samples, [(8, False, 1, 1)] * 3
    )
    assert len(reads) == 1
