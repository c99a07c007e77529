"""Modes of images against known pixels: orientations, inks, depths, one channel."""

import io
import struct
import zlib

import numpy as np
import pytest
import skimage.color
import tifffile
from PIL import Image

from dinov2_jax.data.decode import image_decoder, pixel_formats

EXIF_ORIENTATION = 0x0112


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def decode(content, **fields):
    return image_decoder.Decoder(100_000, **fields).decode(content, name="x")


def noise(*shape, kind=np.uint8):
    high = np.iinfo(kind).max + 1
    return np.random.default_rng(0).integers(0, high, shape, kind)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_value_of_16_bits_is_blended(channels):
    values = np.array([[0, 257, 40_000], [65_535, 257, 258]], np.uint16)
    content = encode(Image.fromarray(values), "PNG", transparency=257)
    if b"tRNS" not in content:  # Pillow writes it for 8 bits only
        chunk = b"tRNS" + (257).to_bytes(2, "big")
        chunk = b"\0\0\0\2" + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        at = content.index(b"IDAT") - 4
        content = content[:at] + chunk + content[at:]
    pixels = decode(content, channels=channels)
    want = np.array([[0, 255, 156], [255, 255, 1]], np.uint8)
    np.testing.assert_array_equal(pixels, np.repeat(want[..., None], channels, 2))


# --- orientation ----------------------------------------------------------------

# What a camera stored of an upright image: row 0 and column 0 are these sides of it.
STORED = {  # EXIF 2.3, tag 0x0112
    1: lambda x: x,  # top, left
    2: lambda x: x[:, ::-1],  # top, right
    3: lambda x: x[::-1, ::-1],  # bottom, right
    4: lambda x: x[::-1],  # bottom, left
    5: lambda x: x.transpose(1, 0, 2),  # left, top
    6: lambda x: x.transpose(1, 0, 2)[::-1],  # right, top
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda x: x.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def marked(orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif


def test_what_row_0_and_column_0_mean():
    # 6 is "right, top": row 0 is the right side, column 0 the top.
    upright = np.array([[1, 2], [3, 4]])[:, :, None]
    assert STORED[6](upright)[..., 0].tolist() == [[2, 4], [1, 3]]
    assert STORED[8](upright)[..., 0].tolist() == [[3, 1], [4, 2]]


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_images_are_turned_upright(kind, orientation):
    upright = np.kron(noise(3, 5, 3) // 2 + 60, np.ones((16, 16, 1), np.uint8))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    content = encode(stored, kind, exif=marked(orientation), **options.get(kind, {}))
    opened = image_decoder.Decoder().open(content, name="x")
    assert (opened.width, opened.height) == (80, 48)
    tolerance = 4 if kind == "JPEG" else 0
    assert np.abs(opened.pixels().astype(int) - upright).max() <= tolerance
    if kind == "TIFF":
        return  # its own tag, which Pillow always heeds
    as_stored = image_decoder.Decoder(exif_orientation=False).open(content, name="x")
    assert (as_stored.width, as_stored.height) == stored.size
    want = np.asarray(stored).astype(int)
    assert np.abs(as_stored.pixels() - want).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
def test_reduced_jpegs_of_every_kind(mode, orientation, reduce):
    rows, columns = np.mgrid[:61, :99]
    upright = np.stack([rows * 4, columns * 2, 255 - columns * 2], -1).astype(np.uint8)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored = stored.convert(mode)
    content = encode(stored, "JPEG", quality=97, exif=marked(orientation))
    want = np.asarray(stored.convert("RGB")).astype(float)
    undo = STORED[{6: 8}.get(orientation, orientation)]
    want = undo(want)
    opened = image_decoder.Decoder().open(content, name="x")
    assert (opened.width, opened.height) == (99, 61)
    for _ in range(2):  # the second reading parses again
        pixels = opened.pixels(reduce)
        assert pixels.shape == (-(-61 // reduce), -(-99 // reduce), 3)
        # Each pixel is the mean of those it stands for, but at cut borders.
        h, w = 61 // reduce, 99 // reduce
        if orientation in (1,):
            blocks = want[: h * reduce, : w * reduce].reshape(h, reduce, w, reduce, 3)
            assert np.abs(pixels[:h, :w] - blocks.mean((1, 3))).max() < 8
        else:  # where the cut border lies depends on the orientation
            middle = want[30, 50]
            assert np.abs(pixels[30 // reduce, 50 // reduce] - middle).max() < 30


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 9), (7, 5), (15, 16), (17, 8)])
@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_sizes_are_rounded_up(size, reduce):
    opened = image_decoder.Decoder().open(
        encode(Image.new("RGB", size), "JPEG"), name="x"
    )
    shape = -(-size[1] // reduce), -(-size[0] // reduce), 3
    assert opened.pixels(reduce).shape == shape


def test_other_formats_give_the_full_size():
    content = encode(Image.new("RGB", (9, 7)), "PNG")
    assert image_decoder.Decoder().open(content, name="x").pixels(4).shape == (7, 9, 3)


@pytest.mark.parametrize("value", [0, 9, 300])
def test_a_mark_without_meaning_is_ignored(value):
    assert decode(encode(Image.new("RGB", (9, 7)), "JPEG", exif=marked(value))).shape


def test_a_damaged_mark_is_ignored():
    content = encode(Image.new("RGB", (9, 7)), "JPEG", exif=marked(6))
    assert decode(content).shape == (9, 7, 3)
    damaged = content.replace(b"Exif\0\0MM", b"Exif\0\0??")
    damaged = damaged.replace(b"Exif\0\0II", b"Exif\0\0??")
    assert damaged != content
    assert decode(damaged).shape == (7, 9, 3)
    cut = b"Exif\0\0MM\0*\0\0\0\x08\0\x05"  # five entries, of which none follows
    content = encode(Image.new("RGB", (9, 7)), "JPEG", exif=cut)
    assert cut in content and decode(content).shape == (7, 9, 3)


# --- inks and other colours -----------------------------------------------------


def test_cmyk_as_adobe_stores_it():
    # 255 - ink in the file, which says so in an APP14 segment.
    content = encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)
    assert b"Adobe" in content
    assert np.abs(decode(content)[8, 8].astype(int) - (0, 255, 255)).max() <= 3


def test_ycck():
    # Of no ink, cyan, magenta, yellow, black: what libjpeg calls YCC is made of
    # 255 - the inverted inks, that is of R = C and so on.
    inks = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]])
    want = [[255, 255, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]
    ycc = np.asarray(Image.fromarray(inks[None].astype(np.uint8)).convert("YCbCr"))[0]
    stored = np.concatenate([ycc, [[255], [255], [255], [255], [0]]], axis=1)
    planes = np.kron(255 - stored[None], np.ones((16, 16, 1))).astype(np.uint8)
    content = encode(
        Image.frombytes("CMYK", (80, 16), planes.tobytes()),
        "JPEG",
        quality=100,
        subsampling=0,
    )
    at = content.index(b"Adobe") + 11  # the transform: 0 is CMYK, 2 is YCCK
    assert content[at] == 0
    pixels = decode(content[:at] + b"\2" + content[at + 1 :])
    assert np.abs(pixels[8, 8::16].astype(int) - want).max() <= 4


def test_lab_tiff():
    lab = np.zeros((1, 4, 3), np.uint8)
    lab[0] = [[255, 0, 0], [0, 0, 0], [128, 60, 256 - 40], [180, 256 - 50, 30]]
    content = tiff(lab, photometric="cielab")
    a, b = np.moveaxis(lab[..., 1:].view(np.int8), 2, 0)
    # Its white is sRGB's: adapting the paper's to it differs in saturated colours.
    want = skimage.color.lab2rgb(np.stack([lab[..., 0] / 2.55, a, b], -1)) * 255
    assert np.abs(decode(content) - want).max() < 20


def test_ycbcr_tiff():
    rgb = np.zeros((8, 8, 3), np.uint8) + np.array([200, 30, 90], np.uint8)
    content = encode(Image.fromarray(rgb).convert("YCbCr"), "TIFF")
    assert np.abs(decode(content).astype(int) - rgb).max() <= 2


def test_colour_profiles_are_ignored():
    rgb = noise(4, 4, 3)
    plain = encode(Image.fromarray(rgb), "PNG")
    profiled = encode(Image.fromarray(rgb), "PNG", icc_profile=b"no profile at all")
    assert plain != profiled
    np.testing.assert_array_equal(decode(profiled), rgb)


# --- depths ---------------------------------------------------------------------


def test_16_bit_rgb_png_is_scaled_not_clipped():
    values = np.array([0, 255, 256, 32768, 65280, 65535], ">u2").repeat(3)
    content = png16(values.reshape(1, 6, 3))
    assert decode(content)[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    with pytest.raises(
        image_decoder.BadImage, match="data.value_range needs 16-bit colour"
    ):
        decode(content, value_range=(0, 1000))


def png16(values):
    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def netpbm(magic, values, maximum):
    """A PGM (P5, P2) or PPM (P6, P3) file of one row."""
    count = values.size // (3 if magic in ("P6", "P3") else 1)
    head = f"{magic}\n{count} 1\n{maximum}\n".encode()
    if magic in ("P2", "P3"):
        return head + " ".join(map(str, values.ravel())).encode() + b"\n"
    return head + values.astype(">u2").tobytes()


@pytest.mark.parametrize("magic", ["P5", "P2"])
@pytest.mark.parametrize("maximum", [1023, 4095, 65535])
def test_16_bit_pgm(magic, maximum):
    values = np.linspace(0, maximum, 50).astype(np.uint16)
    content = netpbm(magic, values, maximum)
    share = values / maximum
    assert np.abs(decode(content)[0, :, 0] - 255 * share).max() <= 0.51
    # A range speaks of the values in the file.
    want = np.rint(np.clip((values - 100.0) * (255 / 600), 0, 255))
    found = decode(content, value_range=(100, 700))[0, :, 2]
    np.testing.assert_array_equal(found, want)


def test_every_value_of_a_pgm_is_recovered():
    values = np.arange(1024, dtype=np.uint16)
    for maximum in (1023, 1024, 40_001, 65_534):
        image = Image.open(io.BytesIO(netpbm("P5", values, maximum)))
        found = pixel_formats._netpbm_values(image, (0, 1))
        np.testing.assert_array_equal(found[0], values)


@pytest.mark.parametrize("magic", ["P6", "P3"])
def test_16_bit_ppm_loses_bits(magic):
    values = np.array([[0, 512, 1023]], np.uint16).T.repeat(3, axis=1)
    content = netpbm(magic, values, 1023)
    assert decode(content)[0, :, 1].tolist() == [0, 128, 255]
    with pytest.raises(
        image_decoder.BadImage, match="data.value_range needs 16-bit colour"
    ):
        decode(content, value_range=(0, 1000))


PHOTOMETRIC = {2: "minisblack", 3: "rgb"}  # by the array's dimensions


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_in_a_given_range(order):
    gray = np.array([[0, 100, 150, 200, 65535]], np.uint16)
    for array in (gray, np.repeat(gray[:, :, None], 3, 2)):
        content = tiff(array, byteorder=order, photometric=PHOTOMETRIC[array.ndim])
        pixels = decode(content, value_range=(100, 200))
        assert pixels[0, :, 1].tolist() == [0, 0, 128, 255, 255]
        want = np.rint(gray[0] / 257)
        assert np.abs(decode(content)[0, :, 2] - want).max() <= (array.ndim == 3)


@pytest.mark.parametrize("kind", [np.float32, np.int16, np.int32])
def test_signed_and_float_tiff_need_a_range(kind):
    gray = np.array([[-9, -2, 0, 2, 9]], kind)
    for array in (gray, np.repeat(gray[:, :, None], 3, 2)):
        content = tiff(array, photometric=PHOTOMETRIC[array.ndim])
        with pytest.raises(image_decoder.BadImage, match="data.value_range"):
            decode(content)
        pixels = decode(content, value_range=(-2, 2))
        assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.filterwarnings("error")
def test_not_a_number_is_0():
    pixels = decode(
        tiff(np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)), value_range=(0, 2)
    )
    assert pixels[0, :, 0].tolist() == [0, 255, 0, 128]


def test_scaling_rounds_to_the_nearest():
    values = np.arange(65536, dtype=np.uint16)
    want = (values.astype(int) + 128) // 257
    np.testing.assert_array_equal(pixel_formats.to_uint8(values, None), want)
    table = np.repeat(values, 2)  # long enough for a table
    np.testing.assert_array_equal(pixel_formats.to_uint8(table, None)[::2], want)


# --- other numbers of channels --------------------------------------------------


def test_one_channel_is_the_luma():
    rgb = noise(16, 16, 3)
    luma = rgb @ [0.299, 0.587, 0.114]
    for kind in ("PNG", "TIFF", "BMP"):
        pixels = decode(encode(Image.fromarray(rgb), kind), channels=1)
        assert pixels.shape == (16, 16, 1)
        assert np.abs(pixels[..., 0] - luma).max() <= 1
    smooth = Image.fromarray(np.kron(rgb, np.ones((16, 16, 1), np.uint8)))
    content = encode(smooth, "JPEG", quality=100)
    pixels = image_decoder.Decoder(channels=1).decode(content, name="x")
    assert np.abs(pixels[8::16, 8::16, 0] - luma).max() <= 4


def test_one_channel_of_gray_of_every_depth():
    gray = noise(4, 5)
    want = gray[:, :, None]
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        content = encode(Image.fromarray(gray), kind)
        np.testing.assert_array_equal(decode(content, channels=1), want)
    deep = encode(Image.fromarray(gray.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(decode(deep, channels=1), want)
    with_alpha = np.stack([gray, np.where(gray > 99, 255, 0)], -1).astype(np.uint8)
    pixels = decode(encode(Image.fromarray(with_alpha), "PNG"), channels=1)
    np.testing.assert_array_equal(pixels[..., 0], np.where(gray > 99, gray, 255))
    bits = Image.fromarray(gray > 99)
    pixels = decode(encode(bits, "PNG"), channels=1)
    np.testing.assert_array_equal(pixels[..., 0], np.where(gray > 99, 255, 0))
    red = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert np.abs(decode(red, channels=1).astype(int) - 76).max() <= 1


def test_four_channels_are_not_blended():
    rgba = noise(5, 6, 4)
    for content in (
        encode(Image.fromarray(rgba), "PNG"),
        encode(Image.fromarray(rgba), "TIFF"),
        encode(Image.fromarray(rgba), "TIFF", compression="tiff_lzw"),
        tiff(rgba, photometric="rgb", extrasamples=["unspecified"]),
        tiff(rgba, photometric="minisblack", planarconfig="contig"),
    ):
        np.testing.assert_array_equal(decode(content, channels=4), rgba)


def test_two_channels():
    pixels = noise(5, 6, 2)
    content = encode(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(decode(content, channels=2), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_missing_channels_are_refused(kind):
    content = encode(Image.fromarray(noise(8, 8, 3)), kind)
    with pytest.raises(
        image_decoder.BadImage, match="3 (channels|samples).*expected 13"
    ):
        decode(content, channels=13)


def test_turning_keeps_every_number_of_channels():
    for channels in (1, 3, 4, 13):
        upright = noise(3, 5, channels)
        for orientation, store in STORED.items():
            turned = pixel_formats.turn(store(upright), orientation)
            np.testing.assert_array_equal(turned, upright)
            assert turned.flags.c_contiguous
