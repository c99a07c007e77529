"""data bench, run as people run it; and the reference's transforms against ours."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.augment import policies
from dinov2_jax.data import __main__ as program
from dinov2_jax.data import multi_crop
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import registry
from dinov2_jax.data.tools import reference_pipeline, throughput
from tests.faults import runs

SMALL = ["--global-size=56", "--local-size=28", "--num-local=2"]


def test_the_program(tmp_path):
    out = tmp_path / "bench.json"
    result = subprocess.run(
        [sys.executable, "-m", "dinov2_jax.data", "bench", "--images=12", *SMALL]
        + ["--workers=1", "--rounds=2", "--seconds=0.1", f"--json={out}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "leaked" not in result.stderr
    found = json.loads(out.read_text())
    rates = found["images_per_second"]
    has_torch = importlib.util.find_spec("torch") is not None  # as the reference needs
    assert {"host", "split"} < set(rates) and ("reference" in rates) == has_torch
    assert all(len(r) == 2 and min(r) > 0 for r in rates.values())
    medians = {name: sum(values) / 2 for name, values in rates.items()}
    assert bool(found["ratios"]) == has_torch
    for name, ratio in found["ratios"].items():
        assert abs(ratio - medians[name] / medians["reference"]) < 1e-6
    assert all(value > 0 for value in found["stages"].values())
    assert "12 images" in result.stdout and "bottleneck: " in result.stdout


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_to_the_whole_group_end_it(number, code):
    """Its processes ignore them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dinov2_jax.data", "bench", "--images=2", *SMALL]
        + ["--workers=1", "--seconds=100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "2 images" not in process.stdout.readline():
        assert process.poll() is None
    while not runs.children(process.pid):
        assert process.poll() is None
    time.sleep(1.0)
    for _ in range(3):
        os.killpg(process.pid, number)
        time.sleep(0.1)
    # Its processes have its output open: it ends when all have.
    _, error = process.communicate(timeout=60)
    assert process.returncode in (code, -number), error  # -2: as Python shut down
    assert "leaked" not in error


def test_many_channels(tmp_path, capsys):
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.full((40, 40, 5), 1000 * i, np.uint16))
    flags = ["--channels=5", "--value-range", "0", "9000", "--workers=1", "--rounds=1"]
    sizes = ["--global-size=28", "--local-size=14", "--num-local=1", "--seconds=0.1"]
    assert program.main(["bench", f"{tmp_path}/*.npy", *flags, *sizes]) == 0
    said = capsys.readouterr().out
    assert "bottleneck: " in said


def test_a_damaged_image_does_not_stop_the_reference(tmp_path):
    pytest.importorskip("torch")
    for i in range(4):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "1.jpg").write_bytes(b"no image")
    source = registry.open_path(str(tmp_path), image_decoder.Decoder())
    work = throughput._Work(source, throughput.Sizes(28, 14, 1), 3)
    assert work("reference", 0) == 6  # of 8, the four images twice


def test_crops_take_what_their_sizes_say():
    crops = throughput.Sizes(28, 14, 3).multi_crop(None)
    image = image_decoder.from_array(np.zeros((40, 40, 5), np.uint8))
    made = crops(image, np.random.default_rng(0))
    assert throughput.Sizes(28, 14, 3).crop_bytes(5) == sum(x.nbytes for x in made)


@pytest.mark.parametrize(
    "flag",
    [
        "--seconds=nan",
        "--seconds=inf",
        "--local-size=99999999",
        "--global-size=13",
        "--num-local=-1",
        "--rounds=0",
        "--json=/",
        "--channels=5",
        "s3://bucket/x",
    ],
)
def test_bad_flags(capsys, flag):
    assert program.main(["bench", flag]) == errors.BAD_INPUT
    out, error = capsys.readouterr()
    assert flag in error and error.count("\n") == 1 and not out


def test_the_reference_draws_what_the_host_draws():
    """The same mean and spread of crops, over many draws of one photograph."""
    pytest.importorskip("torch")
    from skimage import data

    stream = io.BytesIO()
    Image.fromarray(data.astronaut()).save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    theirs = reference_pipeline.ReferencePipeline(
        global_size=32, local_size=16, num_local=1
    )
    ours = multi_crop.MultiCrop(
        global_crops_size=32,
        local_crops_number=1,
        local_crops_size=16,
        policy=policies.POLICIES["rgb"],
    )
    image = image_decoder.Decoder().open(content, name="astronaut")
    image = image_decoder.from_array(image.pixels())
    mean, std = np.array(policies.IMAGENET_MEAN), np.array(policies.IMAGENET_STD)
    samples = {"theirs": [], "ours": []}
    for i in range(600):
        crops = theirs(content, np.random.default_rng(i))
        assert [tuple(c.shape) for c in crops] == [(3, 32, 32)] * 2 + [(3, 16, 16)]
        unnormalised = [np.moveaxis(crop.numpy(), 0, -1) * std + mean for crop in crops]
        samples["theirs"].append([summary(crop) for crop in unnormalised])
        large, small = ours(image, np.random.default_rng(10_000 + i))
        samples["ours"].append([summary(x / 255) for x in (*large, *small)])
    a, b = (np.array(samples[name]) for name in ("theirs", "ours"))
    error = np.sqrt((a.var(0) + b.var(0)) / len(a))
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4.5 * error)
    np.testing.assert_allclose(a.std(0), b.std(0), rtol=0.25)


def summary(crop):
    """Mean, spread, colourfulness and sharpness of a crop in [0, 1]."""
    sharp = np.abs(np.diff(crop, axis=0)).mean()
    return crop.mean(), crop.std(), np.ptp(crop, axis=-1).mean(), sharp
