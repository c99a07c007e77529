"""Sharding: the same bytes, names and labels; resumed shards are those of one run."""

import hashlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data import __main__ as program
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import array_record, registry
from dinov2_jax.data.tools import shard as shard_program
from dinov2_jax.data.tools import shard_folder

ROOT = pathlib.Path(__file__).parents[3]
BAD = ("broken.jpg", "zz.png")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for i in range(40):
        path = root / "abc"[i % 3] / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (40, 60 + i, 3) if i % 2 else (90, 70, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    (root / "a" / "broken.jpg").write_bytes(path.read_bytes()[:900])
    (root / "c" / "zz.png").write_bytes(b"no")
    with open(os.fsencode(root) + b"/b/\xff.png", "wb") as file:
        Image.new("RGB", (30, 30)).save(file, "PNG")
    return root


def shard(*argv):
    return program.main(["shard", *map(str, argv), "--workers=1"])


def digests(path):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.iterdir())
        if p.name != ".lock"
    }


def test_bytes_names_and_labels_stay(folder, tmp_path, capsys):
    assert shard(folder, tmp_path / "out", "--shard-size=15") == 0
    said = capsys.readouterr().out
    assert "41 images in 3 shards, 2 bad" in said
    lines = (tmp_path / "out" / "bad_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["a/broken.jpg", "c/zz.png"]
    note = json.loads((tmp_path / "out" / "shards.json").read_text())
    assert [shard["records"] for shard in note["shards"]] == [15, 15, 11]
    source = registry.open_path(str(tmp_path / "out"), image_decoder.Decoder())
    assert type(source) is array_record.ArrayRecordSource
    before = registry.open_path(str(folder), image_decoder.Decoder())
    kept = [i for i in range(len(before)) if not before.name(i).endswith(BAD)]
    assert len(source) == len(kept) == 41
    for i, j in enumerate(kept):
        assert source.content(i) == before.content(j)
        assert source.name(i) == before.name(j)
        np.testing.assert_array_equal(source.open(i).pixels(), before.open(j).pixels())
    assert source.labels.tolist() == before.labels[kept].tolist()
    assert source.label_names == before.label_names == ["a", "b", "c"]
    names = [array_record.unpack(source._record(i))[1]["name"] for i in range(41)]
    assert b"b/\xff.png" in [os.fsencode(name) for name in names]


def test_resized(folder, tmp_path):
    flags = ("--resize=50", "--quality=90", "--shard-size=80KB")
    assert shard(folder, tmp_path / "out", *flags) == 0
    files = sorted((tmp_path / "out").glob("*.array_record"))
    assert len(files) > 1
    source = registry.open_path(str(tmp_path / "out"), image_decoder.Decoder())
    before = registry.open_path(str(folder), image_decoder.Decoder())
    by_name = {before.name(i): i for i in range(len(before))}
    for i in range(len(source)):
        opened, original = source.open(i), before.open(by_name[source.name(i)])
        if min(original.width, original.height) <= 50:
            assert source.content(i) == before.content(by_name[source.name(i)])
        else:
            assert (opened.width, opened.height) == (50, 64)
            small = original.pixels()
            small = Image.fromarray(small).resize((50, 64), Image.Resampling.BICUBIC)
            error = np.abs(opened.pixels().astype(int) - np.asarray(small)).mean()
            assert error < 8
    per_shard = [array_record.module().ArrayRecordReader(str(f)) for f in files]
    sizes = [sum(map(len, reader.read_all())) for reader in per_shard]
    assert max(sizes) <= 80_000 and min(sizes[:-1]) > 60_000


KILLED = """
import os, signal, sys
from dinov2_jax.data import __main__ as program
from dinov2_jax.data.tools import shard_folder

def die_at(name, when, number):
    real = getattr(*name)
    def dying(self, *args, **options):
        shards = getattr(self, "_destination", self).shards
        if when == "before" and len(shards) == number:
            os.killpg(0, signal.SIGKILL)
        real(self, *args, **options)
        if when == "after" and len(shards) == number:
            os.killpg(0, signal.SIGKILL)
    setattr(*name, dying)

if __name__ == "__main__":
    moments = {
        "noted": ((shard_folder.Destination, "note"), "after"),
        "named": ((shard_folder.Destination, "note"), "before"),
        "begun": ((shard_folder.Shard, "add"), "after"),
    }
    die_at(*moments[sys.argv[1]], int(sys.argv[2]))
    program.main(sys.argv[3:])
"""


def test_killed_and_resumed(folder, tmp_path, capsys):
    """Against SIGKILL, in a real process, at several moments."""
    flags = ["--resize=50", "--shard-size=6", "--workers=1"]
    assert shard(folder, tmp_path / "whole", *flags) == 0
    want = digests(tmp_path / "whole")
    script, destination = tmp_path / "script.py", tmp_path / "killed"
    script.write_text(KILLED)
    # Written and noted, in the middle of the next, written and not yet noted.
    for moment, shards in (("noted", 1), ("begun", 2), ("named", 4)):
        command = [sys.executable, str(script), moment, str(shards), "shard"]
        process = subprocess.run(
            [*command, str(folder), str(destination), *flags],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )
        assert process.returncode == -signal.SIGKILL
        assert len(list(destination.glob("images-*"))) == shards
        assert '"finished": false' in (destination / "shards.json").read_text()
        with pytest.raises(errors.UserError, match="is unfinished: run"):
            registry.open_path(str(destination), image_decoder.Decoder())
    kept = {p: p.stat().st_mtime_ns for p in destination.glob("images-*")}
    capsys.readouterr()
    assert shard(folder, destination, *flags) == 0
    assert digests(destination) == want
    again = {p: p.stat().st_mtime_ns for p in kept}
    assert [again[p] != kept[p] for p in sorted(kept)] == [False] * 3 + [True]
    assert shard(folder, destination, *flags) == 0  # nothing to do
    assert {p: p.stat().st_mtime_ns for p in kept} == again
    # A shard that was lost is written again, with those after it.
    (destination / "images-00003.array_record").unlink()
    assert shard(folder, destination, *flags) == 0
    assert digests(destination) == want


def test_two_at_once_and_other_flags(folder, tmp_path, capsys):
    assert shard(folder, tmp_path / "out") == 0
    assert shard(folder, tmp_path / "out", "--resize=20") == errors.BAD_INPUT
    assert "other images or flags" in capsys.readouterr().err
    (folder / "a" / "more.png").write_bytes(b"x")
    assert shard(folder, tmp_path / "out") == errors.BAD_INPUT
    with shard_folder.lock(tmp_path / "out"):
        assert shard(folder, tmp_path / "out") == errors.BAD_INPUT
    assert f"out is in use by pid {os.getpid()} on " in capsys.readouterr().err
    assert shard(folder, folder) == errors.BAD_INPUT
    assert "holds other files" in capsys.readouterr().err


def test_many_channels(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    values = np.random.default_rng(0).integers(0, 9999, (3, 30, 40, 13), np.uint16)
    for i, bands in enumerate(values):
        np.save(tmp_path / "data" / f"{i}.npy", bands)
    flags = ["--channels=13", "--value-range", "0", "9999"]
    path = f"{tmp_path}/data/*.npy"
    assert shard(path, tmp_path / "out", *flags) == 0
    decoder = image_decoder.Decoder(channels=13, value_range=(0, 9999))
    before = registry.open_path(path, decoder)
    after = registry.open_path(str(tmp_path / "out"), decoder)
    assert len(after) == 3
    for i in range(3):
        np.testing.assert_array_equal(after.open(i).pixels(), before.open(i).pixels())
    assert shard(path, tmp_path / "out") == errors.BAD_INPUT
    assert "other images or flags" in capsys.readouterr().err
    assert shard(path, tmp_path / "small", *flags, "--resize=9") == errors.BAD_INPUT
    assert "--resize" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_gray_is_shrunk_as_gray(tmp_path):
    (tmp_path / "data").mkdir()
    floats = np.linspace(0, 9, 60 * 60, dtype=np.float32).reshape(60, 60)
    tifffile.imwrite(tmp_path / "data" / "a.tif", floats)
    flags = ["--channels=1", "--value-range", "0", "9", "--resize=20"]
    assert shard(tmp_path / "data", tmp_path / "out", *flags) == 0
    source = registry.open_path(
        str(tmp_path / "out"), image_decoder.Decoder(channels=1)
    )
    pixels = source.open(0).pixels()
    assert pixels.shape == (20, 20, 1)
    np.testing.assert_allclose(
        pixels[..., 0].mean(1), 255 * (np.arange(20) + 0.5) / 20, atol=3
    )


@pytest.mark.parametrize("height", [3, 4])
def test_too_long_for_a_jpeg(tmp_path, height):
    (tmp_path / "data").mkdir()
    image = Image.new("L", (70_000 * height // 3, height))
    image.save(tmp_path / "data" / "a.png")
    assert shard(tmp_path / "data", tmp_path / "out", "--resize=3") == 0
    source = registry.open_path(str(tmp_path / "out"), image_decoder.Decoder())
    assert source.content(0) == (tmp_path / "data" / "a.png").read_bytes()


def test_an_image_that_cannot_be_shrunk_is_bad(folder, monkeypatch):
    decoder = image_decoder.Decoder()
    source = registry.open_path(str(folder), decoder)
    monkeypatch.setattr(shard_program, "_LONGEST", 10**9)
    pixels = np.zeros((2, 140_000, 3), np.uint8)
    packing = shard_program.Packing(source, decoder, 1, 90)
    monkeypatch.setattr(type(decoder), "decode", lambda *_, **__: pixels)
    result = packing(0)
    assert isinstance(result, image_decoder.BadImage)
    assert result.reason.startswith("cannot be shrunk (")


def test_repeats_are_not_lost(folder, tmp_path, capsys):
    (folder / "list.csv").write_text("path,repeat\na/000.jpg,3\nb/001.jpg,1\n")
    assert shard(folder / "list.csv", tmp_path / "out") == errors.BAD_INPUT
    assert "column `repeat`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (folder / "list.csv").write_text("path,repeat\na/000.jpg,1\nb/001.jpg,1\n")
    assert shard(folder / "list.csv", tmp_path / "out") == 0


def test_a_disk_that_is_full(folder, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        code = shard(folder, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == errors.TRY_AGAIN
    said = capsys.readouterr().err
    assert "images-00000.array_record" in said and "make room" in said
    assert shard(folder, tmp_path / "out") == 0


def test_only_bad_images(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"x")
    assert shard(tmp_path / "data", tmp_path / "out") == errors.BAD_INPUT
    assert "none of the 1 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--shard-size=0", "--shard-size=1.5", "--shard-size=x", "--quality=0"]
)
def test_bad_flags(folder, tmp_path, capsys, flag):
    assert shard(folder, tmp_path / "out", flag) == errors.BAD_INPUT
    assert flag.split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shards_again_as_a_source(folder, tmp_path):
    assert shard(folder, tmp_path / "one") == 0
    assert shard(tmp_path / "one", tmp_path / "two") == 0
    one, two = (
        registry.open_path(str(tmp_path / name), image_decoder.Decoder())
        for name in ("one", "two")
    )
    assert [one.content(i) for i in range(41)] == [two.content(i) for i in range(41)]
    assert one.labels.tolist() == two.labels.tolist()
    assert [one.name(i) for i in range(41)] == [two.name(i) for i in range(41)]
