"""Images that scaling makes useless are found, and the range that would mend them."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile

from dinov2_jax.data.decode import image_decoder, value_use


class Source:
    """Images in memory, by a decoder."""

    def __init__(self, contents, decoder):
        self.contents, self.decoder = contents, decoder

    def __len__(self):
        return len(self.contents)

    def open(self, index):
        return self.decoder.open(self.contents[index], name=str(index))


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def tiff(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def warnings(contents, value_range=None):
    decoder = image_decoder.Decoder(value_range=value_range)
    return value_use.check(Source(contents, decoder), value_range)


def deep(bits, kind=np.uint16):
    values = np.random.default_rng(0).integers(0, 2**bits, (64, 64, 3)).astype(kind)
    values[0, 0] = 2**bits - 1
    return values


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("layout", ["npy", "gray TIFF", "RGB TIFF"])
def test_few_bits_in_many(bits, layout):
    values = deep(bits)
    content = {
        "npy": npy,
        "gray TIFF": lambda x: tiff(x[:, :, 0]),
        "RGB TIFF": lambda x: tiff(x, photometric="rgb"),
    }[layout](values)
    if bits == 8 and layout == "RGB TIFF":
        return  # Pillow takes the high byte: all of it is 0
    (line,) = warnings([content] * 3)
    assert line.startswith("3 of 3 images are nearly black: they use only the")
    assert (
        f"lower {bits} of 16 bits; set --config.data.value_range='(0,{2**bits - 1})'"
        in line
    )
    assert not warnings([content], (0, 2**bits - 1))


def test_whole_range_and_bytes_are_left_alone():
    dark = np.full((8, 8, 3), 3, np.uint8)
    assert not warnings([npy(deep(16)), tiff(dark, photometric="rgb"), npy(dark)])
    assert not warnings([b"no image"])


@pytest.mark.parametrize("range_", [(0, 1), (60_000, 65_535)])
def test_values_outside_of_the_range(range_):
    (line,) = warnings([npy(deep(14) + 100)] * 2, range_)
    assert line.startswith("2 of 2 images lie outside data.value_range = (")
    assert "set --config.data.value_range" in line


def test_bad_images_are_not_counted():
    (line,) = warnings([npy(deep(12)), b"bad", b"bad"])
    assert line.startswith("1 of 1 images")


def test_dark_png_in_colour_has_to_be_converted():
    """With a range, it would be refused."""
    rows = b"".join(b"\0" + row.tobytes() for row in deep(12).astype(">u2"))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    (line,) = warnings([content])
    assert line.endswith(
        "the lower 12 of 16 bits; save them as 16-bit TIFF or .npy, then set "
        "--config.data.value_range='(0,4095)'"
    )
