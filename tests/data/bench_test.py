"""data bench, run as people run it; and the reference's transforms against ours."""

import io
import json
import subprocess
import sys

import numpy as np
from PIL import Image

from dinov2_jax.data import images, multi_crop, recipe, reference_pipeline


def test_the_program(tmp_path):
    out = tmp_path / "bench.json"
    sizes = ["--global-size=56", "--local-size=28", "--num-local=2"]
    result = subprocess.run(
        [sys.executable, "-m", "dinov2_jax.data", "bench", "--images=40", *sizes]
        + ["--workers=2", "--rounds=2", "--seconds=0.2", f"--json={out}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "leaked" not in result.stderr
    found = json.loads(out.read_text())
    rates = found["images_per_second"]
    assert {"reference", "host", "split"} < set(rates)
    assert all(len(r) == 2 and min(r) > 0 for r in rates.values())
    medians = {name: sum(values) / 2 for name, values in rates.items()}
    for name, ratio in found["ratios"].items():
        assert abs(ratio - medians[name] / medians["reference"]) < 1e-6
    assert all(value > 0 for value in found["stages"].values())
    assert "40 images" in result.stdout and "bottleneck: " in result.stdout
    for name in ("reference's transforms", "data.augmentation=host", "times the"):
        assert name in result.stdout


def test_the_reference_draws_what_the_host_draws():
    """The same mean and spread of crops, over many draws of one photograph."""
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
        policy=recipe.POLICIES["rgb"],
    )
    image = images.Decoder().open(content, name="astronaut")
    image = images.from_array(image.pixels())
    mean, std = np.array(recipe.IMAGENET_MEAN), np.array(recipe.IMAGENET_STD)
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
