"""TIFFs of every kind of pixels, against the array they were written from.

Bits x sign x photometric x planes x compression x tiles x byte order: what is decoded
is right within a level, everything else is refused by name.
"""

import io
import itertools
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinov2_jax.data.decode import image_decoder, tiff_layout

KINDS = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64"),
    *("float16", "float32", "float64"),
)
# (photometric, samples, extra samples)
COLOURS = {
    "gray": ("minisblack", 1, None),
    "min-is-white": ("miniswhite", 1, None),
    "RGB": ("rgb", 3, None),
    "RGB and alpha": ("rgb", 4, "unassalpha"),
    "RGB and unspecified": ("rgb", 4, "unspecified"),
}


def tiff(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def decode(content, channels=3, value_range=None):
    decoder = image_decoder.Decoder(channels=channels, value_range=value_range)
    return decoder.decode(content, name="x")


def reason(content, channels=3, value_range=None):
    with pytest.raises(image_decoder.BadImage) as caught:
        decode(content, channels, value_range)
    return caught.value.reason


def values(kind, *shape):
    rng, kind = np.random.default_rng(0), np.dtype(kind)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    if kind.kind == "f":
        return (2 * rng.random(shape) - 1).astype(kind)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, shape, kind, endpoint=True)


def expected(stored, value_range, *, invert, extra):
    """RGB in [0, 255] as float64, by the definitions of the TIFF standard."""
    kind = stored.dtype
    top = 1 if kind.kind == "b" else np.iinfo(kind).max if kind.kind in "ui" else None
    eight_bits = kind.kind == "b" or kind == np.uint8  # never scaled by a range
    low, high = (0, top) if eight_bits else value_range or (0, top)
    x = np.clip((stored.astype(np.float64) - low) / (high - low), 0, 1)
    x = 1 - x if invert else x
    colour = x[:, :, :3] if x.shape[2] >= 3 else np.repeat(x[:, :, :1], 3, axis=2)
    if extra == "unassalpha":
        alpha = stored[:, :, 3:].astype(np.float64) / top
        colour = colour * alpha + 1 - alpha
    return colour * 255


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("kind", KINDS)
def test_is_right_or_refused(colour, kind):
    photometric, samples, extra = COLOURS[colour]
    stored = values(kind, 16, 24, samples)
    signed = stored.dtype.kind in "if"
    range_ = (-1, 1) if stored.dtype.kind == "f" else (10, 100)
    decoded = 0
    for planar, compression, tile, order, value_range in itertools.product(
        ("contig", "separate") if samples > 1 else (None,),
        (None, "zlib"),
        (None, (16, 16)),
        "<>",
        (None, range_),
    ):
        array = stored[:, :, 0] if samples == 1 else stored
        if planar == "separate":
            array = np.moveaxis(stored, 2, 0)
        content = tiff(
            array,
            photometric=photometric,
            planarconfig=planar,
            compression=compression,
            tile=tile,
            byteorder=order,
            extrasamples=[extra] if extra else None,
        )
        if kind == "bool" and samples > 1:
            assert "1-bit RGB TIFF is not supported" in reason(content)
        elif signed and extra == "unassalpha":
            assert "with alpha is not supported" in reason(content, 3, range_)
        elif signed and value_range is None:
            assert "pixels have no defined range: set" in reason(content)
        else:
            pixels = decode(content, 3, value_range)
            invert = photometric == "miniswhite"
            want = expected(stored, value_range, invert=invert, extra=extra)
            # Colour and alpha are rounded to 8 bits, then their product.
            level = 2.01 if extra == "unassalpha" else 1.01
            assert np.abs(pixels - want).max() <= level, (planar, compression, order)
            decoded += 1
    assert decoded or kind == "bool" or signed


def packed(values, bits):
    """The bytes of rows of integers with the highest bit first."""
    rows = []
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)


def hand_made(pixels, *, bits, photometric, size=(6, 4), order="<", more=()):
    """A one-strip, one-sample TIFF of given bits."""
    tags = {
        256: size[0],
        257: size[1],
        258: bits,
        259: 1,
        262: photometric,
        273: 0,
        277: 1,
        278: size[1],
        279: len(pixels),
    } | dict(more)
    tags = {tag: value for tag, value in tags.items() if value is not None}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack(order + "HHII", tag, 4, 1, value)
        for tag, value in sorted(tags.items())
    )
    start = b"II*\0" if order == "<" else b"MM\0*"
    head = start + struct.pack(order + "IH", 8, len(tags))
    return head + entries + bytes(4) + pixels


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits(bits, order):
    stored = np.random.default_rng(0).integers(0, 2**bits, (4, 6))
    for photometric in (0, 1):
        content = hand_made(
            packed(stored, bits), bits=bits, photometric=photometric, order=order
        )
        share = stored / (2**bits - 1)
        want = 255 * (1 - share if photometric == 0 else share)
        assert np.abs(decode(content, 1)[:, :, 0] - want).max() <= 0.5


def test_twelve_bits_are_not_nearly_black():
    stored = np.random.default_rng(0).integers(0, 4096, (4, 6))
    content = hand_made(packed(stored, 12), bits=12, photometric=1)
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        assert reason(content, 1) == "12-bit gray TIFF needs: pip install imagecodecs"
    else:
        assert np.abs(decode(content, 1)[:, :, 0] - stored / 4095 * 255).max() <= 0.5


def test_other_colours_are_refused_by_name():
    gray = bytes(48)
    for photometric, name in (
        (3, "16-bit palette TIFF"),
        (32803, "colour filter array"),
        (32844, "LogL"),
        (34892, "linear raw"),
        (77, "16-bit photometric 77"),
        (None, "without a photometric interpretation"),
    ):
        content = hand_made(gray, bits=16, photometric=photometric)
        assert name in reason(content), name
    for photometric in ("cielab", "ycbcr"):
        content = tiff(values("uint16", 8, 8, 3), photometric=photometric)
        assert "is not supported" in reason(content)


@pytest.mark.parametrize("order, bits", [(">", 16), ("<", 32)])
def test_jpeg_2000_that_tifffile_reads_wrongly(order, bits):
    content = hand_made(
        bytes(96), bits=bits, photometric=0, order=order, more={259: 34712}
    )
    assert "min-is-white TIFF in JPEG 2000 is not supported" in reason(content)
    content = hand_made(
        bytes(96), bits=bits, photometric=1, order=order, more={259: 34712}
    )
    assert "gray TIFF in JPEG 2000 is not supported" in reason(content)


def test_samples_that_differ_are_refused():
    content = bytearray(tiff(values("uint8", 8, 8, 3), photometric="rgb"))
    at = content.index(struct.pack("<HHH", 8, 8, 8))
    content[at : at + 6] = struct.pack("<HHH", 5, 6, 5)
    assert "samples differ: bits [5, 6, 5]" in reason(bytes(content))


@pytest.mark.parametrize("more", [{254: 1}, {50706: 0x0104}])
def test_the_preview_of_a_raw_file_is_refused(more):
    content = hand_made(bytes(24), bits=8, photometric=1, more=more)
    assert "camera's raw file" in reason(content)


def test_a_tag_given_twice_is_refused():
    content = hand_made(bytes(24), bits=8, photometric=1, more={280: 16})
    at = content.index(struct.pack("<HHII", 280, 4, 1, 16))
    content = content[:at] + struct.pack("<H", 258) + content[at + 2 :]
    assert "two entries of tag 258" in reason(content)


# --- pages ------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [2, 3, 4, 5])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pages_of_an_ome_tiff_are_channels(pages, channels):
    stored = values("uint8", pages, 16, 24)
    options = dict(photometric="minisblack", metadata={"axes": "CYX"})
    for content in (
        tiff(stored, ome=True, **options),
        tiff(stored, imagej=True, **options),
    ):
        if pages == channels:
            want = np.moveaxis(stored, 0, 2)
            np.testing.assert_array_equal(decode(content, channels), want)
        else:
            said = reason(content, channels)
            assert "TIFF of 1 samples in" in said and f"expected {channels}" in said


@pytest.mark.parametrize("pages", [1, 2, 3, 4])
def test_pages_that_are_not_said_to_be_channels(pages):
    stored = values("uint8", pages, 16, 24)
    content = tiff(stored, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(decode(content, 1)[:, :, 0], stored[0])
    if pages == 3:
        assert "3 gray pages may be 3 channels or 3 images" in reason(content)
    else:
        want = np.repeat(stored[0][:, :, None], 3, 2)
        np.testing.assert_array_equal(decode(content), want)
    if pages == 4:
        want = np.moveaxis(stored, 0, 2)
        np.testing.assert_array_equal(decode(content, 4), want)


def test_a_z_stack_of_one_channel_gives_its_first_page():
    stored = values("uint8", 3, 16, 24)
    options = dict(photometric="minisblack", metadata={"axes": "ZYX"})
    for content in (
        tiff(stored, ome=True, **options),
        tiff(stored, imagej=True, **options),
    ):
        want = np.repeat(stored[0][:, :, None], 3, 2)
        np.testing.assert_array_equal(decode(content), want)


def test_min_is_white_pages_are_inverted():
    stored = values("uint16", 4, 16, 24)
    content = tiff(stored, photometric="miniswhite", metadata=None)
    want = 255 - np.moveaxis(stored, 0, 2) / 257
    assert np.abs(decode(content, 4) - want).max() <= 0.5


def test_premultiplied_gray():
    stored = values("uint8", 8, 8, 2)
    stored[:, :, 0] = np.minimum(stored[:, :, 0], stored[:, :, 1])
    content = tiff(
        *(stored,),
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["assocalpha"],
    )
    want = stored[:, :, 0].astype(int) + 255 - stored[:, :, 1]
    # Pillow divides by the alpha first, which rounds.
    assert np.abs(decode(content, 1)[:, :, 0] - want).max() <= 2


def test_colour_of_all_depths_as_luma():
    rgb = values("uint16", 8, 8, 3)
    luma = rgb / 257 @ [0.299, 0.587, 0.114]
    for planar, array in (("contig", rgb), ("separate", np.moveaxis(rgb, 2, 0))):
        content = tiff(array, photometric="rgb", planarconfig=planar)
        assert np.abs(decode(content, 1)[:, :, 0] - luma).max() <= 2


def test_the_layout_of_a_page():
    content = tiff(values("int16", 3, 8, 8), photometric="rgb", byteorder=">")
    layout = tiff_layout.read(io.BytesIO(content))
    assert layout.describe() == "16-bit signed RGB TIFF"
    assert layout.planar and layout.big_endian and not layout.has_pages


def test_lzw_of_gray_needs_no_package():
    gray = values("uint16", 8, 8)
    stream = io.BytesIO()
    Image.fromarray(gray).save(stream, "TIFF", compression="tiff_lzw")
    pixels = decode(stream.getvalue(), 1)[:, :, 0]
    assert np.abs(pixels - gray / 257).max() <= 0.5
