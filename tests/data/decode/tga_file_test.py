"""TGA files of all kinds, written byte by byte."""

import struct

import numpy as np
import pytest

from dinov2_jax.data.decode import image_decoder, tga_file

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (7, 11, 3), np.uint8)
RGBA = np.concatenate([RGB, RGB[::-1, :, :1]], axis=2)
PALETTE = RNG.integers(0, 256, (16, 3), np.uint8)
GRAY, NUMBERS = RGB[..., 0], RGB[..., 0] % 16


def write(pixels, *, kind, flags=0, palette=None, runs=False, depth=None, entry=24):
    """Encode stored pixels, gray or BGR(A), as the specification says."""
    height, width = pixels.shape[:2]
    if not flags & 0x20:
        pixels = pixels[::-1]
    if flags & 0x10:
        pixels = pixels[:, ::-1]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    items = pixels.reshape(-1, channels)
    if channels > 1:
        items = items[:, {2: [1, 0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    if runs:
        # A run of one pixel, then each of the others in a packet by itself.
        content = b"".join(
            bytes([0x80 if i % 2 else 0]) + item.tobytes()
            for i, item in enumerate(items)
        )
    else:
        content = items.tobytes()
    colours = b"" if palette is None else palette[:, ::-1].tobytes()
    header = struct.pack(
        "<3B2HB4H2B",
        *(3, palette is not None, kind | 8 * runs),
        *((0, 0, 0) if palette is None else (0, len(palette), entry)),
        *(0, 0, width, height, depth or 8 * channels, flags),
    )
    return header + b"id." + colours + content


def decode(content, channels=3):
    return image_decoder.Decoder(channels=channels).decode(content, name="x")


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("origin", [0, 0x10, 0x20, 0x30])
def test_equals_what_was_written(origin, runs):
    common = dict(flags=origin, runs=runs)
    np.testing.assert_array_equal(decode(write(RGB, kind=2, **common)), RGB)
    gray = decode(write(GRAY, kind=3, **common), channels=1)[..., 0]
    np.testing.assert_array_equal(gray, GRAY)
    mapped = decode(write(NUMBERS, kind=1, palette=PALETTE, **common))
    np.testing.assert_array_equal(mapped, PALETTE[NUMBERS])
    common["flags"] |= 8
    rgba = write(RGBA, kind=2, **common)
    np.testing.assert_array_equal(decode(rgba, channels=4), RGBA)
    opacity = RGBA[..., 3:] / 255
    blended = RGB * opacity + 255 * (1 - opacity)
    assert np.abs(decode(rgba) - blended).max() <= 1


@pytest.mark.parametrize(
    "content, reason",
    [
        (write(RGB[..., :2], kind=2, depth=16), "16-bit pixels"),
        (write(RGBA, kind=2), "0 alpha bits in 32-bit pixels"),
        (write(NUMBERS, kind=1, palette=PALETTE, entry=32), "a 32-bit palette"),
        (write(RGB, kind=2)[:-50], "truncated"),
    ],
)
def test_others_are_refused(content, reason):
    with pytest.raises(image_decoder.BadImage, match=reason):
        decode(content)


def test_other_files_are_no_tga():
    for content in (b"", bytes(600), b"\0\1\2" * 9, b"\0\0\2" + b"text of a file" * 9):
        assert not tga_file.is_tga(content)
    found = sum(tga_file.is_tga(RNG.bytes(18)) for _ in range(20_000))
    assert found <= 2
