""".npy and TIFF of many channels: layouts, types, headers that lie."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinov2_jax.data.decode import image_decoder, tiff_header


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def tiff(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def decode(content, channels=13, value_range=None, max_pixels=1000):
    decoder = image_decoder.Decoder(
        max_pixels, channels=channels, value_range=value_range
    )
    opened = decoder.open(content, name="x")
    pixels = opened.pixels(2)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert pixels.shape == (opened.height, opened.width, channels)
    np.testing.assert_array_equal(opened.pixels(), pixels)  # a second time
    return pixels


def bands(kind=np.uint8, channels=13, height=5, width=7):
    """[H, W, C] over the whole range of an integer type."""
    range_ = np.iinfo(kind)
    rng = np.random.default_rng(0)
    return rng.integers(
        range_.min, range_.max, (height, width, channels), kind, endpoint=True
    )


# Encoders of [H, W, 13], of every layout.
LAYOUTS = {
    "npy": npy,
    "npy, channels first": lambda x: npy(np.ascontiguousarray(np.moveaxis(x, 2, 0))),
    "npy, Fortran": lambda x: npy(np.asfortranarray(x)),
    "npy, version 2": lambda x: npy(x, version=(2, 0)),
    "npy, big-endian": lambda x: npy(x.astype(x.dtype.newbyteorder(">"))),
    "samples": lambda x: tiff(x, photometric="minisblack", planarconfig="contig"),
    "planes": lambda x: tiff(
        np.moveaxis(x, 2, 0), photometric="minisblack", planarconfig="separate"
    ),
    "pages": lambda x: tiff(np.moveaxis(x, 2, 0), photometric="minisblack"),
    "big-endian pages": lambda x: tiff(
        np.moveaxis(x, 2, 0), photometric="minisblack", byteorder=">"
    ),
    "BigTIFF": lambda x: tiff(np.moveaxis(x, 2, 0), bigtiff=True),
    "deflate, tiles": lambda x: tiff(
        *(np.moveaxis(x, 2, 0),),
        photometric="minisblack",
        compression="zlib",
        tile=(16, 16),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    encode = LAYOUTS[layout]
    np.testing.assert_array_equal(decode(encode(bands())), bands())
    deep = bands(np.uint16)
    want = (deep.astype(int) + 128) // 257
    np.testing.assert_array_equal(decode(encode(deep)), want)


@pytest.mark.parametrize("layout", ["npy", "samples", "pages"])
@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float32])
def test_a_given_range(layout, kind):
    values = np.clip(bands(np.int16).astype(np.float64) / 10, 0, None) - 500
    if kind == np.uint16:
        values += 500
    low, high = (0, 1000) if kind == np.uint16 else (-500, 500)
    values = values.astype(kind)
    share = (values.astype(np.float64) - low) / (high - low)
    want = np.clip(share, 0, 1) * 255
    pixels = decode(LAYOUTS[layout](values), value_range=(low, high))
    assert np.abs(pixels - want).max() <= 0.5001
    assert {0, 255} <= set(pixels.ravel())


@pytest.mark.parametrize("layout", ["npy", "samples", "pages"])
@pytest.mark.parametrize("kind", ["int16", "float32", "float16"])
def test_types_without_a_range_need_one(layout, kind):
    content = LAYOUTS[layout](np.zeros((5, 7, 13), kind))
    with pytest.raises(image_decoder.BadImage, match=f"{kind} pixels.*value_range='"):
        decode(content)


def test_uint8_needs_no_range_and_ignores_it():
    np.testing.assert_array_equal(decode(npy(bands()), value_range=(0, 9)), bands())


def test_npy_of_one_and_three_channels():
    gray, rgb = bands(channels=1), bands(channels=3)
    np.testing.assert_array_equal(decode(npy(gray[..., 0]), 1), gray)
    np.testing.assert_array_equal(decode(npy(gray), 1), gray)
    np.testing.assert_array_equal(decode(npy(rgb), 3), rgb)
    np.testing.assert_array_equal(decode(npy(np.moveaxis(rgb, 2, 0).copy()), 3), rgb)
    mask = bands(channels=1) > 99
    np.testing.assert_array_equal(decode(npy(mask), 1), mask * 255)


def test_npy_from_a_path(tmp_path):
    path = tmp_path / "a.npy"
    large = bands(channels=13, height=600, width=600)
    np.save(path, large)
    decoder = image_decoder.Decoder(channels=13)
    np.testing.assert_array_equal(decoder.decode(path, name="x"), large)


def test_tiff_is_turned_upright():
    upright = bands()
    stored = np.moveaxis(upright, 1, 0)[::-1]  # row 0 is the right side
    content = tiff(
        stored,
        photometric="minisblack",
        planarconfig="contig",
        extratags=[(0x0112, "H", 1, 6, True)],
    )
    np.testing.assert_array_equal(decode(content), upright)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def lying_npy(shape, descr="|u1", size=100):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return (
        b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + b"0" * size
    )


def lzw_pages():
    pages = [Image.fromarray(page) for page in np.moveaxis(bands(), 2, 0)]
    stream = io.BytesIO()
    pages[0].save(
        *(stream, "TIFF"),
        compression="tiff_lzw",
        save_all=True,
        append_images=pages[1:],
    )
    return stream.getvalue()


def patched_tag(content, tag, value):
    """A little-endian TIFF with another value of a LONG or SHORT tag."""
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, at) == (tag,):
            field = struct.pack("<HII", 4, 1, value)
            return content[: at + 2] + field + content[at + 12 :]
    raise KeyError(tag)


def tiled(channels, tile_length):
    options = dict(photometric="minisblack", tile=(16, 16), compression="zlib")
    if channels > 1:
        options["planarconfig"] = "contig"
    content = tiff(bands(channels=channels).squeeze(), **options)
    return patched_tag(content, 323, tile_length)


BAD = {
    "shape": (npy(bands(channels=4)), r"shape \[5, 7, 4\] is not \[H, W, 13\] or"),
    "either": (npy(np.zeros((13, 4, 13))), "could be either of"),
    "two dimensions": (npy(np.zeros((5, 5), np.uint8)), r"shape \[5, 5\] is not"),
    "no rows": (npy(np.zeros((0, 5, 13), np.uint8)), "is empty"),
    "objects": (npy(np.full((5, 7, 13), Evil())), "object pixels are not numbers"),
    "complex": (npy(np.zeros((5, 7, 13), complex)), "complex128 pixels are not"),
    "records": (npy(np.zeros((5, 7, 13), "u1,f4")), "are not numbers"),
    "version": (b"\x93NUMPY\x09\0" + npy(bands())[8:], "cannot be decoded|version"),
    "truncated": (npy(bands())[:-1], "truncated"),
    "bomb": (lying_npy((10**6, 10**6, 13)), "1000000x1000000 px is more than"),
    "negative": (lying_npy((-5, -7, 13)), "-7x-5 px is empty"),
    "lies": (lying_npy((20, 20, 13)), "truncated"),
    "no header": (b"\x93NUMPY\1\0\xff\xff", "cannot be decoded"),
    "code": (lying_npy("exit()"), "cannot be decoded"),
    "12 pages": (LAYOUTS["pages"](bands(channels=12)), "1 samples in 12 pages"),
    "14 pages": (LAYOUTS["pages"](bands(channels=14)), "1 samples in more pages"),
    "4 samples": (LAYOUTS["samples"](bands(channels=4)), "4 samples in 1 pages"),
    "wide": (LAYOUTS["samples"](bands(width=201)), "201x5 px is more than max_pixels"),
    "compression": (lzw_pages(), "LZW compression in TIFF needs: pip install imagec"),
    "no height": (patched_tag(LAYOUTS["samples"](bands()), 257, 0), "is empty"),
    "directory": (LAYOUTS["samples"](bands())[:60], "truncated TIFF directory"),
    "tile": (tiled(13, 10**7), "16x10000000 px is more than max_pixels"),
    "cut": (LAYOUTS["samples"](bands())[:-300], "cannot be decoded"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad(kind):
    content, reason = BAD[kind]
    with pytest.raises(image_decoder.BadImage, match=reason) as caught:
        decode(content)
    assert len(caught.value.reason) < 140 and "\n" not in caught.value.reason


def test_a_tile_that_is_a_bomb_for_pillow():
    assert decode(tiled(1, 16), 1).shape == (5, 7, 1)
    with pytest.raises(image_decoder.BadImage, match="16x10000000 px is more than max"):
        decode(tiled(1, 10**7), 1)


def test_a_tile_behind_damage_where_pillow_stops_reading():
    content = tiled(1, 10**7)
    at = content.index(struct.pack("<HH", 282, 5))  # a resolution, before the tiles
    content = content[: at + 4] + struct.pack("<I", 10**9) + content[at + 8 :]
    with pytest.raises(image_decoder.BadImage, match="16x10000000 px is more than max"):
        decode(content, 1)


def test_a_tile_of_a_later_page():
    pages = np.moveaxis(bands(), 2, 0)
    options = dict(photometric="minisblack", tile=(16, 16), compression="zlib")
    content = tiff(pages, **options)
    np.testing.assert_array_equal(decode(content), bands())
    at = content.rindex(struct.pack("<HHII", 323, 4, 1, 16)) + 8
    content = content[:at] + struct.pack("<I", 10**7) + content[at + 4 :]
    with pytest.raises(image_decoder.BadImage, match="16x10000000 px is more than max"):
        decode(content)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_the_size_of_tiles_in_headers(bigtiff, byteorder):
    for tile in (None, (32, 48)):
        content = tiff(bands(), bigtiff=bigtiff, byteorder=byteorder, tile=tile)
        found = tiff_header.largest_tile(io.BytesIO(content))
        assert found == ((48, 32) if tile else (0, 0))


def test_pages_that_differ():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for index in range(13):
            writer.write(np.zeros((5, 7 + (index == 12)), np.uint8), contiguous=False)
    with pytest.raises(image_decoder.BadImage, match="pages of the TIFF differ"):
        decode(stream.getvalue())


def test_a_large_bomb_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        file.write(lying_npy((2000, 2000, 13)))
        file.truncate(4_000_000 * 13 + 128)
    reads = []
    real = image_decoder.Decoder._parse

    def parse(self, file):
        try:
            return real(self, file)
        finally:
            reads.append(file.tell())

    monkeypatch.setattr(image_decoder.Decoder, "_parse", parse)
    with pytest.raises(image_decoder.BadImage, match="2000x2000 px is more than"):
        image_decoder.Decoder(3_999_999, channels=13).open(path, name="x")
    assert len(reads) == 1 and reads[0] < 1000
