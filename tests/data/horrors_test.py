"""A folder of everything that folders hold trains, and says what it left out."""

import io
import os
import socket
import struct
import zlib

import numpy as np
import processes
import pytest
from PIL import Image

from configs import debug
from dinov2_jax.data import batch_builder
from dinov2_jax.data.sources import base, registry

GOOD_PHOTOGRAPHS = 40
LONG = "long" * 50  # 200 characters


def photograph(number, size=(48, 40)):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def good_files():
    """{name: content} of what a picture viewer shows."""
    one = photograph(1000)
    gray = one.convert("L")
    alpha = one.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(one.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    frames = [photograph(i) for i in range(3)]
    files = {
        "cmyk.jpg": encoded(one.convert("CMYK"), "JPEG"),
        "palette.png": encoded(one.quantize(9), "PNG", transparency=3),
        "palette.gif": encoded(one.quantize(9), "GIF", transparency=2),
        "sixteen bit.png": encoded(wide, "PNG"),
        "one bit.png": encoded(one.convert("1"), "PNG"),
        "fax.tif": encoded(one.convert("1"), "TIFF", compression="group4"),
        "animated.gif": encoded(
            frames[0], "GIF", save_all=True, append_images=frames[1:]
        ),
        "animated.webp": encoded(
            frames[0], "WEBP", save_all=True, append_images=frames[1:]
        ),
        "rotated.jpg": encoded(one, "JPEG", exif=exif),
        "LA.png": encoded(alpha.convert("LA"), "PNG"),
        "alpha.webp": encoded(alpha, "WEBP"),
        "alpha.PNG": encoded(alpha, "PNG"),
        "gray.JPG": encoded(gray, "JPEG"),
        "progressive.JpEg": encoded(one, "JPEG", progressive=True),
        "1x1.png": encoded(one.resize((1, 1)), "PNG"),
        "1x5000.png": encoded(one.resize((1, 5000)), "PNG"),
        "5000x1.jpg": encoded(one.resize((5000, 1)), "JPEG"),
        "a png.jpg": encoded(one, "PNG"),
        "a jpeg.png": encoded(one, "JPEG"),
        "a.jpg/inside.jpg": encoded(one, "JPEG"),
        "with a tab\tand a\nline.jpg": encoded(one, "JPEG"),
        "üñí 画像.jpg": encoded(one, "JPEG"),
        "-rf.jpg": encoded(one, "JPEG"),
        b"latin \xfc.jpg": encoded(one, "JPEG"),
    }
    for i in range(GOOD_PHOTOGRAPHS):
        files[f"deep/er/{i}.jpg"] = encoded(photograph(i), "JPEG")
    return files


def bad_files():
    """{name: content} of what nobody can show, or of what is too large to."""
    one = photograph(2000)
    jpeg, png = encoded(one, "JPEG"), encoded(one, "PNG")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = (
        png[:8]
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + png[33:]
    )
    hole = bytearray(png)
    hole[len(hole) // 3 : len(hole) // 3 + 64] = bytes(64)
    files = {
        "empty.jpg": b"",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "only the start.jpg": jpeg[:3],
        "hole.png": bytes(hole),
        "bomb.png": bomb,
        "text.jpg": b"This is not a picture.",
        "page.png": b"<!DOCTYPE html><html><h1>404 Not Found</h1></html>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "document.jpg": b"%PDF-1.4\n%\xe2\xe3",
        "zeros.bmp": bytes(1000),
        "cut.gif": encoded(one.quantize(9), "GIF")[:60],
        "cut.webp": encoded(one, "WEBP")[:60],
        "cut.tif": encoded(one, "TIFF")[:100],
        "bad\ttab\nline.jpg": b"x",
        "schlecht ü 悪い.jpg": b"x",
        # The same, where bytes that are not UTF-8 are all shown alike.
        b"\xff.jpg": b"x",
        b"\xfe.jpg": b"x",
        # The same, where the end of a name has to do.
        f"a/{LONG}/bad.jpg": b"x",
        f"b/{LONG}/bad.jpg": b"x",
    }
    return files


def write_all(root, files):
    for name, content in files.items():
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


@pytest.fixture(scope="module")
def horrors(tmp_path_factory):
    """(folder, good names, bad names, names of what is no file)."""
    root = tmp_path_factory.mktemp("horrors")
    good, bad = good_files(), bad_files()
    write_all(root, good | bad)
    here = os.getcwd()
    os.chdir(root)
    try:
        os.mkfifo("b.jpg")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket.png")
        os.symlink("nowhere.jpg", "broken link.jpg")
        os.symlink("loop.jpg", "loop.jpg")
        os.symlink("/dev/zero", "endless.jpg")
        os.symlink(".", "deep/around")
        os.symlink("deep/er/0.jpg", "a link.jpg")
    finally:
        os.chdir(here)
    good["a link.jpg"] = b""
    (root / ".hidden.jpg").write_bytes(b"x")
    (root / "readme.txt").write_text("not looked at")
    (root / "thumbs.db").write_bytes(b"x")
    if os.geteuid():
        (root / "secret.jpg").write_bytes(encoded(photograph(0), "JPEG"))
        (root / "secret.jpg").chmod(0)
        bad["secret.jpg"] = b""
    for i in range(100):
        for j in range(100):
            (root / "empty" / str(i) / str(j)).mkdir(parents=True)
    no_files = ["b.jpg", "socket.png", "broken link.jpg", "loop.jpg", "endless.jpg"]
    return root, sorted(good, key=os.fsencode), sorted(bad, key=os.fsencode), no_files


def shown(name):
    """A name as a person should find it in a file of lines with tabs."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    return name.replace("\t", r"\t").replace("\n", r"\n")


def train(trainer, path, workdir, *flags, total):
    steps = -(-total // 32) + 1
    finished = trainer.run(
        "--config=configs/debug.py",
        f"--workdir={workdir}",
        "--config.data.source=auto",
        f"--config.data.path={path}",
        f"--config.train.steps={steps}",
        "--config.optim.warmup_steps=1",
        "--config.log.tensorboard=False",
        *flags,
    )
    assert finished.code == 0, finished.output
    assert not processes.noise(finished.output)
    rows = processes.rows(workdir)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert all(np.isfinite(row["loss/total"]) for row in rows)
    return finished


def reported(workdir):
    """{name: reason} of bad_images.txt."""
    text = (workdir / "bad_images.txt").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    assert all(len(line) == 2 for line in lines), lines
    assert len({name for name, _ in lines}) == len(lines)  # each of them once
    return dict(lines)


class Spy(base.Source):
    """A source that remembers what it delivered."""

    fingerprint = "spy"

    def __init__(self, source):
        self._source, self.delivered = source, set()

    def __len__(self):
        return len(self._source)

    def name(self, index):
        return self._source.name(index)

    def open(self, index):
        image = self._source.open(index)
        image.pixels()  # or it raises
        self.delivered.add(self._source.relative_path(index))
        return image

    def _where(self):
        return "behind a spy"


def delivered_in_one_pass(path):
    config = debug.get_config()
    config.data.update(source="auto", path=str(path))
    spy = Spy(registry.make_source(config))
    builder = batch_builder.make_batch_builder(config, spy)
    for step in range(-(-len(spy) // config.train.batch_size)):
        builder(step)
    return spy.delivered


def test_as_a_folder(horrors, trainer, tmp_path):
    root, good, bad, no_files = horrors
    total = len(good) + len(bad)
    finished = train(trainer, root, tmp_path / "run", total=total)
    found = f"images      {total} images in"
    assert found in finished.output
    assert f"({len(no_files)} skipped: " in finished.output
    names = reported(tmp_path / "run")
    assert sorted(names) == sorted(map(shown, bad))
    assert all(len(reason) > 5 for reason in names.values())
    for name, reason in {
        "empty.jpg": "empty file",
        "bomb.png": "more pixels than",
        "page.png": "not an image",
        "cut.jpg": "cannot be decoded",
    }.items():
        assert reason in names[name]
    said = f"{len(bad)} of {total} images are unreadable and were replaced"
    assert said in finished.output
    assert delivered_in_one_pass(root) == set(map(os.fsencode, good))


@pytest.mark.slow
def test_as_a_manifest(horrors, trainer, tmp_path):
    """Where everything is named, everything that cannot be used is reported."""
    root, good, bad, no_files = horrors
    bad = [*bad, *no_files, "a.jpg", "not there.jpg", ".hidden.jpg", "readme.txt"]
    good, bad = (
        [name for name in names if "\n" not in os.fsdecode(name)]
        for names in (good, bad)
    )
    total = len(good) + len(bad)
    manifest = root / "list.txt"
    manifest.write_bytes(b"".join(os.fsencode(name) + b"\n" for name in good + bad))
    flags = ["--config.data.workers=0"]
    finished = train(trainer, manifest, tmp_path / "run", *flags, total=total)
    assert f"images      {total} images listed in {manifest}" in finished.output
    names = reported(tmp_path / "run")
    assert sorted(names) == sorted(map(shown, bad))
    assert names["a.jpg"] == "a folder"
    assert {names[name] for name in ("b.jpg", "socket.png", "endless.jpg")} == {
        "not a regular file"
    }
    assert delivered_in_one_pass(manifest) == set(map(os.fsencode, good))
