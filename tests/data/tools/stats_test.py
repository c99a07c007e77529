"""Mean and deviation of a folder against NumPy over all its pixels at once."""

import ast
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from configs import default
from dinov2_jax.config import checking
from dinov2_jax.data import __main__ as data
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import folder as folder_lib
from dinov2_jax.data.tools import stats


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    pixels = []
    for i in range(12):
        image = rng.integers(0, 20 * i + 9, (9 + i, 30 - i, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        pixels.append(image.reshape(-1, 3))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path, np.concatenate(pixels).astype(np.float64) / 255


def test_exact_over_all_pixels(folder, capsys):
    path, pixels = folder
    assert data.main(["stats", str(path), "--json", "--workers=3"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    np.testing.assert_allclose(facts["mean"], pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(facts["std"], pixels.std(0), rtol=1e-12)
    assert facts["images"] == 12 and facts["pixels"] == len(pixels)
    assert list(facts["skipped"]) == ["broken.jpg"]
    assert err.startswith("skipped broken.jpg: ")


def test_the_flags_can_be_pasted(folder, capsys):
    path, pixels = folder
    assert data.main(["stats", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "12 of 13 images, 1 skipped" in err
    config = default.get_config()
    for flag, want in zip(shlex.split(out), (pixels.mean(0), pixels.std(0))):
        name, _, value = flag.removeprefix("--config.").partition("=")
        value = ast.literal_eval(value)
        np.testing.assert_allclose(value, want, rtol=1e-5)
        config.update_from_flattened_dict({name: value})
    checking.check(config)
    assert len(config.data.mean) == len(config.data.std) == 3


def test_one_channel_is_a_tuple_too(folder, capsys):
    assert data.main(["stats", str(folder[0]), "--channels=1"]) == 0
    for flag in shlex.split(capsys.readouterr().out):
        assert len(ast.literal_eval(flag.partition("=")[2])) == 1


def test_many_channels_in_a_range(tmp_path, capsys):
    bands = np.random.default_rng(0).integers(0, 3000, (4, 20, 30, 5), np.uint16)
    for i, image in enumerate(bands):
        options = dict(photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(tmp_path / f"{i}.tif", image, **options)
    flags = ["--channels=5", "--value-range", "500", "2000", "--json"]
    assert data.main(["stats", str(tmp_path), *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    pixels = np.clip((bands.reshape(-1, 5) - 500.0) / 1500, 0, 1)
    np.testing.assert_allclose(facts["mean"], pixels.mean(0), atol=1e-3)
    np.testing.assert_allclose(facts["std"], pixels.std(0), atol=1e-3)


def test_the_sample_is_random_and_seeded():
    chosen = stats.sample(1000, 100, seed=0)
    assert len(set(chosen)) == 100 and 0 <= chosen.min() and chosen.max() < 1000
    assert abs(chosen.mean() - 500) < 100
    np.testing.assert_array_equal(chosen, stats.sample(1000, 100, seed=0))
    assert set(chosen) != set(stats.sample(1000, 100, seed=1))
    for all_of_them in (0, 7, 8):
        assert stats.sample(7, all_of_them, seed=0).tolist() == list(range(7))


def test_a_sample_of_the_folder(folder):
    source = folder_lib.FolderSource(folder[0], image_decoder.Decoder())
    found = stats.gather(source, [3, 5], channels=3, workers=1)
    assert found.images == 2 and not found.skipped
    assert found.counts.sum(1).tolist() == [12 * 27 + 14 * 25] * 3


@pytest.mark.parametrize(
    "flags, words",
    [
        (["/no/such/folder"], "/no/such/folder"),
        ([__file__], "stats_test.py"),
        (["{}"], "none of 1 images"),
        (["{}", "--channels=0"], "--channels=0"),
        (["{}", "--workers=0"], "--workers=0"),
        (["{}", "--max-images=-1"], "--max-images=-1"),
        (["{}", "--value-range", "3", "3"], "LOW"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, flags, words):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert data.main(["stats", *(flag.format(tmp_path) for flag in flags)]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ") and words in err


def test_a_seed_below_zero_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        data.main(["stats", str(tmp_path), "--seed=-1"])
    assert "--seed: '-1' is not a whole number" in capsys.readouterr().err


def test_as_a_program(folder):
    command = [sys.executable, "-m", "dinov2_jax.data", "stats", str(folder[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("--config.data.mean='(0.")
