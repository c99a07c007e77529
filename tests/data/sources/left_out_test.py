"""Files that are not read are counted, and their remedy is named."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data import __main__ as program
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import extensions, registry

DECODER = image_decoder.Decoder()


def save(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def settle(root):
    """Make folders look old, so that their listing is kept."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1e9, 1e9))


def reopened(path):
    return registry.open_path(str(path), DECODER)


def test_every_extension_is_counted(tmp_path):
    for i in range(3):
        save(tmp_path / "a" / f"{i}.jpg")
    slides = [f"b/{i}.svs" for i in range(4)]
    touch(tmp_path, *slides, "b/x.CR2", "readme.txt", "b/noextension", ".hidden.svs")
    touch(tmp_path, "b/scan.0001", "b/archive.tar.gz")
    want = {".svs": 4, ".cr2": 1, ".txt": 1, "without extension": 2, ".gz": 1}
    settle(tmp_path)
    for _ in range(2):  # the second from the cache
        source = reopened(tmp_path)
        assert source.left_out() == want and len(source) == 3
        assert "(left out: 4 .svs, " in source.describe()
    said = "\n".join(source.warnings())
    assert "4 .svs are left out: cut whole slides into tiles first" in said
    assert "1 .cr2 is left out: develop" in said
    assert "more such files are left out than read: 6 against 3 images" in said
    assert ".txt" not in said


def test_counts_follow_the_folder(tmp_path):
    save(tmp_path / "a" / "0.jpg")
    touch(tmp_path, "a/x.svs", "b/y.psd")
    settle(tmp_path)
    before = reopened(tmp_path)
    assert before.left_out() == {".svs": 1, ".psd": 1}
    (tmp_path / "a" / "x.svs").unlink()
    touch(tmp_path, "c/0.mp4")
    after = reopened(tmp_path)
    assert after.left_out() == {".psd": 1, ".mp4": 1}
    assert after.fingerprint == before.fingerprint  # the same images
    settle(tmp_path)
    assert reopened(tmp_path).left_out() == {".psd": 1, ".mp4": 1}


def test_patterns_count_what_they_match(tmp_path):
    save(tmp_path / "a" / "0.jpg")
    touch(tmp_path, "a/1.svs", "b/2.svs")
    assert reopened(f"{tmp_path}/a/*").left_out() == {".svs": 1}
    assert reopened(f"{tmp_path}/*/*.jpg").left_out() == {}


def test_members_and_neighbours_of_tar_files(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("0.png", "0.cls", "0.json", "1.psd", "1.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(stream.getvalue())
            tar.addfile(info, io.BytesIO(stream.getvalue()))
    touch(tmp_path, "y.tar.gz", "notes.md")
    for _ in range(2):  # the second from the cache
        source = reopened(tmp_path)
        assert source.left_out() == {".psd": 1, ".txt": 1, ".gz": 1}
    assert "unpack archives" in "\n".join(source.warnings())


@pytest.mark.parametrize("name, words", [("a.svs", "vips"), ("a.psd", "convert them")])
def test_nothing_but_files_that_are_not_read(tmp_path, name, words):
    touch(tmp_path, name)
    for path in (tmp_path, f"{tmp_path}/*"):
        with pytest.raises(errors.UserError) as caught:
            reopened(path)
        said = str(caught.value)
        assert f"1 {name[1:]} is left out: " in said and words in said
        assert "\n" not in said


def test_scan_and_shard_warn(tmp_path, capsys):
    save(tmp_path / "data" / "0.png")
    touch(tmp_path / "data", "1.svs", "2.svs")
    assert program.main(["scan", str(tmp_path / "data"), "--workers=1"]) == 0
    said = capsys.readouterr().out
    assert "\nwarning: 2 .svs are left out: " in said
    assert "\nleft out     2 .svs" in said
    to = tmp_path / "shards"
    assert program.main(["shard", str(tmp_path / "data"), str(to)]) == 0
    assert "\nwarning: 2 .svs are left out: " in capsys.readouterr().out


@pytest.mark.parametrize("name", [".jxl", ".heic", ".dcm"])
def test_formats_of_plugins(name):
    """They are read where the library is, and else an extra is named."""
    assert (name in extensions.IMAGES) != ("dinov2-jax[" in extensions.fix(name))


@pytest.mark.parametrize("ending", [".ppm", ".pgm", ".pbm", ".pnm"])
def test_netpbm(tmp_path, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    image = Image.fromarray(pixels)
    image = {".ppm": image.convert("RGB"), ".pbm": image.convert("1")}.get(
        ending, image
    )
    image.save(tmp_path / f"a{ending}", "PPM")
    found = reopened(tmp_path).open(0).pixels()
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("marks", [["run.lock"], ["config.json", "checkpoints/1/x"]])
def test_folders_of_runs_are_left_out(tmp_path, marks):
    save(tmp_path / "a" / "0.jpg")
    touch(tmp_path, *(f"runs/1/{mark}" for mark in marks))
    save(tmp_path / "runs/1/pca.png")
    save(tmp_path / "runs/1/profile/x.png")
    settle(tmp_path)
    for _ in range(2):  # the second from the cache
        source = reopened(tmp_path)
        assert [source.name(i) for i in range(len(source))] == ["a/0.jpg"]
        assert source.skipped_names() == [("runs/1/", "output of a run")]
        assert "1 x output of a run" in source.describe()
    # The data folder is the workdir itself.
    touch(tmp_path, *marks)
    save(tmp_path / "pca.png")
    assert len(reopened(tmp_path)) == 1


def test_a_run_begins_between_two_starts(tmp_path):
    save(tmp_path / "a" / "0.jpg")
    save(tmp_path / "run" / "pca.png")
    settle(tmp_path)
    assert len(reopened(tmp_path)) == 2
    (tmp_path / "run" / "run.lock").touch()
    assert len(reopened(tmp_path)) == 1
