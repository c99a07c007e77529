"""The program on a tiny model, once as a process; its refusals before any weights."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import random_weights
from PIL import Image, ImageFile

from dinov2_jax import pretrained
from dinov2_jax.visualize import __main__ as visualize
from dinov2_jax.weights import torch_writer

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of different shapes and weights, 128 wide with 4 registers."""
    folder = tmp_path_factory.mktemp("visualize")
    rng = np.random.default_rng(0)
    for name, size in (("wide.png", (60, 40)), ("high.jpg", (30, 50))):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    (folder / "other").mkdir()
    Image.open(folder / "wide.png").save(folder / "other" / "Wide.tiff")
    (folder / "text.jpg").write_text("no image")
    shapes = random_weights.small_shapes("vits14_reg4")
    torch_writer.write(folder / "tiny.pth", random_weights.tensors(shapes))
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Runs the program in the folder; it must succeed."""
    monkeypatch.chdir(folder)
    # As the program does when it starts: the bytes of a PNG depend on it.
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**24)

    def run(*arguments):
        assert visualize.main([*arguments]) == 0

    return run


def process(folder, *arguments):
    """The program in a process of its own, in the folder."""
    return subprocess.run(
        [sys.executable, "-m", "dinov2_jax.visualize", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


MODEL = ("--model", "tiny.pth", "--num-heads", "2", "--size", "70")


def test_pictures_of_two_images_and_the_same_bytes_again(folder, run):
    arguments = ("wide.png", "high.jpg", *MODEL, "--out")
    done = process(folder, *arguments, "new/a")
    assert done.returncode == 0 and not done.stderr, done.stderr
    names = ["attention_high", "attention_wide", "matches", "pca"]
    written = re.findall(r"^wrote (.+)$", done.stdout, re.MULTILINE)
    assert sorted(written) == [f"new/a/{name}.png" for name in names]
    run(*arguments, "new/b")
    for out in ("a", "b"):
        files = sorted((folder / "new" / out).iterdir())  # and nothing half written
        assert [f.name for f in files] == [f"{name}.png" for name in names]
    for file in files:
        assert file.read_bytes() == (folder / "new" / "a" / file.name).read_bytes()
        with Image.open(file) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.mode == "RGB"
    with Image.open(folder / "new/a/attention_wide.png") as picture:
        # Photograph, mean, 2 heads, 4 registers; 5 patches of 51 px, 3 and 1 gaps.
        assert picture.width == 4 * 255 + 5 * 6


def test_chosen_kinds_for_three_images(folder, run):
    arguments = ("wide.png", "high.jpg", "other/Wide.tiff", *MODEL, "--out", "three")
    run(*arguments, "--norms", "--attention", "--block", "0")
    names = sorted(f.name for f in (folder / "three").iterdir())
    assert names == [
        "attention_Wide_2.png",
        "attention_high.png",
        "attention_wide.png",
        "norms.png",
    ]
    same = [folder / "three" / f"attention_{n}.png" for n in ("wide", "Wide_2")]
    pixels = [np.asarray(Image.open(path))[28:] for path in same]  # less the name
    np.testing.assert_array_equal(*pixels)


def test_the_foreground_changes_pca_and_matches(folder, run):
    common = ("wide.png", "high.jpg", *MODEL, "--pca", "--matches", "--out")
    for out, flags in (("f", ["--foreground"]), ("g", ["--flip-foreground"])):
        run(*common, out, *flags)
    for name in ("pca.png", "matches.png"):
        one, other = (Image.open(folder / out / name) for out in "fg")
        assert one.tobytes() != other.tobytes()


@pytest.fixture
def refused(folder, monkeypatch, capsys):
    """Runs the program in the folder; returns its one line of error."""
    monkeypatch.chdir(folder)

    def refuse(*arguments, loads=False):
        if not loads:
            monkeypatch.setattr(pretrained, "load", None)
        assert visualize.main([*arguments]) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return refuse


def test_invalid_image_files(refused):
    error = refused("gone.png", "wide.png", "text.jpg", ".", *MODEL, "--out", "no")
    assert "gone.png: No such file" in error
    assert "text.jpg: not an image" in error
    assert ".: is a folder, not a file" in error
    assert "wide.png" not in error
    assert not pathlib.Path("no").exists()


def test_dark_images_are_said(tmp_path, refused, capsys):
    Image.fromarray(np.full((20, 20), 4095, np.uint16)).save(tmp_path / "a.png")
    visualize._check_images([str(tmp_path / "a.png")])
    assert "lower 12 of 16 bits; scale them" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 3])
def test_matches_need_two_images(refused, count):
    error = refused(*["wide.png"] * count, *MODEL, "--matches", "--out", "no")
    assert f"two images, but {count} are given" in error


def test_folders_that_cannot_be_written(refused):
    error = refused("wide.png", *MODEL, "--out", "text.jpg/sub")
    assert "cannot write to the folder text.jpg/sub" in error and "--out" in error
    error = refused("wide.png", *MODEL, "--out", "text.jpg")
    assert "cannot write to the folder text.jpg " in error


@pytest.mark.parametrize("flag", ["--size", "--max-matches"])
def test_numbers_below_one(refused, flag):
    assert f"{flag}=0: use 1" in refused("wide.png", *MODEL, flag, "0")


def test_foreground_needs_pca_or_matches(refused):
    error = refused("wide.png", *MODEL, "--attention", "--foreground")
    assert "--foreground needs --pca or --matches" in error


def test_errors_that_need_the_model(refused):
    arguments = ("wide.png", *MODEL, "--out", "late")
    assert "smaller than one patch" in refused(*arguments, "--size", "13", loads=True)
    assert "no block 2" in refused(*arguments, "--block", "2", loads=True)
    error = refused("wide.png", "--model", "gone.pth", "--out", "late", loads=True)
    assert "no file or folder gone.pth" in error
    assert not list(pathlib.Path("late").iterdir())


@pytest.mark.parametrize("letter, kept", [("a", 150), ("é", 75), ("\U0001f40b", 37)])
def test_long_names_are_cut_by_bytes(letter, kept):
    assert visualize._stems([f"{letter * 200}.png"]) == [letter * kept]


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        visualize.main(["--help"])
    assert not caught.value.code
    assert "--size" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [[], ["--model"], [*MODEL, "--num-heads=0"], [*MODEL, "--siz=70"], ["--size=x"]],
)
def test_bad_flags_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        visualize.main(["wide.png", *flags])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error


def test_tilde_is_expanded_and_wrapped_weights_are_read(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    tensors = random_weights.tensors(random_weights.small_shapes("vits14_reg4"))
    net = {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    torch_writer.write(folder / "wrapped.pth", {"net": net})
    flags = ["--model=~/wrapped.pth", "--key=net", "--prefix=encoder."]
    flags += ["--num-heads=2", "--size=70", "--out=~/home"]
    assert visualize.main([str(folder / "wide.png"), "--norms", *flags]) == 0
    assert (folder / "home" / "norms.png").exists()
