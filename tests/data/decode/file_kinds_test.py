"""Files that are not what their name says are called what they are."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import file_kinds, image_decoder


def encode(kind, **options):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, kind, **options)
    return stream.getvalue()


def box(*brands):
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(content) + 4) + content + bytes(100)


FILES = {
    "an MP4 video, not an image": box(b"isom", b"iso2", b"mp41"),
    "a QuickTime video, not an image": box(b"qt  "),
    "a camera's raw file, which is not read": box(b"crx ", b"isom"),
    "an icon file, which is not read": encode("ICO"),
    "a Photoshop file, which is not read": b"8BPS\0\1" + bytes(100),
    "an HTML page, not an image": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "an SVG drawing": b"<?xml version='1.0'?>\n<svg width='9' height='9'></svg>",
    "an XML document, not an image": b"<?xml version='1.0'?><Error>NoSuchKey</Error>",
    "a JSON document, not an image": b'{"error": "not found"}',
    "a git-LFS pointer: fetch the image with git lfs pull": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ),
    "512 or more zero bytes": bytes(9000),
    "a PDF, not an image": b"%PDF-1.7\n" + bytes(100),
    "a ZIP archive, not an image": b"PK\3\4" + bytes(100),
    "metadata of macOS": b"\0\5\x16\7" + bytes(100),
    "a JPEG file, but damaged": b"\xff\xd8\xff" + b"x" * 100,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_called_what_it_is(kind, tmp_path):
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(FILES[kind])
    with pytest.raises(image_decoder.BadImage) as caught:
        image_decoder.Decoder().decode(path, name="IMG_1.jpg")
    assert str(caught.value).startswith(f"IMG_1.jpg: is {kind}")
    assert len(caught.value.reason) < 120


def test_an_empty_file_and_an_unknown_one():
    for content, reason in ((b"", "empty file"), (b"\1\2\3" * 99, "not an image")):
        with pytest.raises(image_decoder.BadImage, match=reason):
            image_decoder.Decoder().decode(content, name="x")


def test_gif_of_any_name_is_read(tmp_path):
    path = tmp_path / "IMG_1.jpg"
    path.write_bytes(encode("GIF"))
    pixels = image_decoder.Decoder().decode(path, name="x")
    np.testing.assert_array_equal(pixels[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    "brands, kind",
    [
        ((b"heic", b"mif1", b"heic"), file_kinds.HEIC),
        ((b"mif1", b"heic", b"miaf"), file_kinds.HEIC),
        ((b"mif1", b"avif", b"miaf"), file_kinds.AVIF),
        ((b"avis", b"avif"), file_kinds.AVIF),
        ((b"heic", b"avif"), file_kinds.HEIC),
    ],
)
def test_brands(brands, kind):
    assert file_kinds.name_kind(box(*brands)) == (kind, "")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "JPEG", "AVIF"])
def test_kinds_that_are_read(kind):
    name, _ = file_kinds.name_kind(encode(kind)[: file_kinds.HEAD])
    assert {"WEBP": "WebP"}.get(kind, kind) in name
