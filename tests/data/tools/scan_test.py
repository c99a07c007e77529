"""The scan: what it counts, and every bad image, against what was put there."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data import __main__ as program
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import photos as photos_lib
from dinov2_jax.data.sources import registry
from dinov2_jax.data.tools import scan, shard


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.jpg")
    Image.fromarray(pixels[:, :, 0]).save(root / "gray.png")
    Image.fromarray(pixels).convert("CMYK").save(root / "sub" / "cmyk.jpeg")
    Image.fromarray(pixels).quantize(4).save(root / "sub" / "palette.gif")
    content = (root / "0.jpg").read_bytes()
    (root / "sub" / "copy.jpg").write_bytes(content)
    (root / "sub" / "another copy.jpg").write_bytes(content)
    (root / "cut.jpg").write_bytes(content[: len(content) // 2])
    (root / "cut copy.jpg").write_bytes(content[: len(content) // 2])
    (root / "empty.png").touch()
    (root / "text.webp").write_text("not an image")
    os.mkfifo(root / "pipe.jpg")
    return root


def test_scan(folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert program.main(["scan", str(folder), f"--json={out}", "--workers=2"]) == 0
    report = json.loads(out.read_text())
    assert (report["images"], report["good"]) == (14, 10)
    assert report["bytes"] == sum(
        p.stat().st_size for p in folder.rglob("*") if p.is_file()
    )
    assert report["height"] == {"min": 40, "median": 42.5, "max": 44}
    assert report["shorter_side"] == report["height"]
    assert report["longer_side"] == {"min": 60, "median": 60, "max": 60}
    assert report["megapixels"]["max"] == 0.0026
    assert report["formats"] == {"JPEG": 10, "PNG": 1, "GIF": 1}
    assert report["modes"] == {"RGB": 9, "L": 1, "CMYK": 1, "P": 1}
    assert report["duplicates"] == [["0.jpg", "sub/another copy.jpg", "sub/copy.jpg"]]
    assert (report["duplicate_groups"], report["duplicate_images"]) == (1, 2)
    bad = {entry["name"]: entry["reason"] for entry in report["bad_images"]}
    assert set(bad) == {"cut.jpg", "cut copy.jpg", "empty.png", "text.webp"}
    assert "truncated" in bad["cut.jpg"] and bad["empty.png"] == "empty file"
    assert report["skipped"] == [{"name": "pipe.jpg", "reason": "not a regular file"}]
    said = capsys.readouterr().out
    for name in ("JPEG 10", "cut.jpg: ", "pipe.jpg: "):
        assert name in said
    assert "0.jpg = sub/another copy.jpg = sub/copy.jpg" in said


def test_names_of_any_bytes(folder, tmp_path):
    """On an output that, unlike the tests' own, takes UTF-8 alone."""
    os.rename(folder, tmp_path / "\udcff")
    out = tmp_path / "r\udcfe.json"
    done = subprocess.run(
        [sys.executable, "-m", "dinov2_jax.data", "scan", f"{tmp_path}/\udcff"]
        + [f"--json={out}", "--workers=1"],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "r\\udcfe.json" in done.stdout
    assert json.loads(out.read_text())["good"] == 10


def test_any_source(tmp_path):
    photos = photos_lib.PhotosSource("val")
    report = scan.scan(photos, image_decoder.Decoder(), workers=0)
    assert report["good"] == len(photos) and report["formats"] == {"PNG": len(photos)}


def test_many_channels(tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 9999, (2, 30, 40, 13), np.uint16)
    for i, bands in enumerate(values):
        np.save(tmp_path / f"{i}.npy", bands)
    floats = values[0, :, :, 0].astype(np.float32)
    tifffile.imwrite(tmp_path / "gray.tif", floats)
    flags = ["--value-range", "0", "9999", "--workers=1"]
    for path, channels, formats in (("*.npy", 13, "NPY 2"), ("*.tif", 1, "TIFF 1")):
        argv = ["scan", f"{tmp_path}/{path}", f"--channels={channels}", *flags]
        assert program.main(argv) == 0
        said = capsys.readouterr().out
        assert "bad images   0" in said and f"formats      {formats}" in said
        assert "shorter side min 30, median 30, max 30 px" in said
    assert program.main(["scan", f"{tmp_path}/*.npy", "--max-pixels=99", *flags]) == 0
    assert "bad images   2" in capsys.readouterr().out


class Killer(image_decoder.Decoder):
    """Stands for a decoder with a fault that a file triggers."""

    def open(self, content, *, name):
        if content.startswith(b"kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if content.startswith(b"hang"):
            time.sleep(1000)
        return super().open(content, name=name)


def test_hostile_files_do_not_stop_the_scan(folder):
    (folder / "hostile.jpg").write_bytes(b"kill")
    (folder / "sub" / "endless.jpg").write_bytes(b"hang")
    source = registry.open_path(str(folder), image_decoder.Decoder())
    report = scan.scan(source, Killer(), workers=2, seconds=8)
    bad = {entry["name"]: entry["reason"] for entry in report["bad_images"]}
    assert report["good"] == 10 and len(bad) == 6
    assert bad["hostile.jpg"] == "the decoder was killed by SIGKILL"
    assert bad["sub/endless.jpg"] == "took longer than 8 s"


def test_a_long_list_is_cut_in_the_table(folder):
    for i in range(30):
        (folder / f"none {i}.png").touch()
    source = registry.open_path(str(folder), image_decoder.Decoder())
    report = scan.scan(source, image_decoder.Decoder(), workers=0)
    assert len(report["bad_images"]) == 34
    assert "and 24 more, see --json" in scan.table(report)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["/nowhere"], "/nowhere"),
        (["{}", "--workers=0"], "--workers=0"),
        (["{}", "--json=/nowhere/x.json"], "/nowhere"),
        (["{}", "--json={}"], "--json"),
        (["{}", "--seconds=nan"], "--seconds=nan"),
        (["{}", "--channels=0"], "--channels=0"),
        (["{}", "--value-range", "nan", "3"], "LOW"),
    ],
)
def test_bad_flags(folder, capsys, flags, words):
    argv = ["scan", *(flag.format(folder) for flag in flags)]
    assert program.main(argv) == errors.BAD_INPUT
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_sources_without_files_are_written_as_png():
    photos = photos_lib.PhotosSource("bank")
    content = photos.content(3)
    decoded = image_decoder.Decoder().decode(content, name="")
    np.testing.assert_array_equal(decoded, photos.open(3).pixels())


def test_a_huge_file_is_a_bad_image(folder):
    """It is sparse, and not read."""
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(2**40)
    decoder = image_decoder.Decoder()
    source = registry.open_path(str(folder), decoder)
    index = [source.name(i) for i in range(len(source))].index("huge.jpg")
    said = scan.Examine(source, decoder)(index).reason
    assert said == f"a file of {2**40} bytes is too large for images of max_pixels"
    assert shard.Packing(source, decoder, 0, 95)(index).reason == said


def test_no_memory_is_a_bad_image(folder, monkeypatch):
    def content(self, index):
        raise MemoryError

    decoder = image_decoder.Decoder()
    source = registry.open_path(str(folder), decoder)
    monkeypatch.setattr(type(source), "content", content)
    for examine in (
        scan.Examine(source, decoder),
        shard.Packing(source, decoder, 0, 9),
    ):
        assert examine(0).reason == "out of memory while reading"


def test_formats_that_other_libraries_read(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    pixels = np.full((64, 64, 3), 90, np.uint8)
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic")
    zeros = np.zeros((8, 8, 3), np.float16)
    tifffile.imwrite(tmp_path / "b.tif", zeros, photometric="rgb")
    decoder = image_decoder.Decoder(value_range=(0, 1))
    source = registry.open_path(str(tmp_path), decoder)
    report = scan.scan(source, decoder, workers=0)
    assert report["formats"] == {"HEIC": 1, "TIFF": 1}
