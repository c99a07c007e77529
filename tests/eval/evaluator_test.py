"""The evaluator: images of any channels, prepared as the run prepares its own."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import debug
from dinov2_jax import errors, sharding, ssl_meta_arch
from dinov2_jax.config import checking
from dinov2_jax.data import preprocessing
from dinov2_jax.data.sources import registry
from dinov2_jax.eval import evaluation_data, evaluator

SIZE = 16


def make(path, channels, suffix=""):
    config = debug.get_config()
    config.data.source = "auto"
    config.model.update(in_chans=channels, depth=1)
    config.data.update(
        mean=tuple(np.linspace(0.2, 0.6, channels)),
        std=tuple(np.linspace(0.1, 0.3, channels)),
    )
    config.evaluation.update(
        train_path=f"{path}{suffix}",
        val_path=f"{path}{suffix}",
        image_size=SIZE,
        resize_size=SIZE,
        picture_size=SIZE,
        knn_k=(1,),
        batch_size=4,
    )
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, np.float32)
    made = evaluator.make_evaluator(config, meta_arch, sharding.make_mesh(1))
    return made, meta_arch, config


def write(root, channels):
    """Six images of two classes; returns their pixels in the order of their names."""
    pixels = []
    for i in range(6):
        one = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, channels))
        pixels.append(one.astype(np.uint8))
        folder = root / str(i // 3)
        folder.mkdir(parents=True, exist_ok=True)
        if channels == 13:
            np.save(folder / f"{i}.npy", pixels[-1])
        else:
            Image.fromarray(pixels[-1].squeeze()).save(folder / f"{i}.png")
    return np.stack(pixels)


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_channels_and_their_statistics(tmp_path, channels):
    pixels = write(tmp_path / "images", channels)
    (tmp_path / "images/0/0a.png").write_bytes(b"no image")
    pattern = "/**/*.npy" if channels == 13 else ""
    made, meta_arch, config = make(tmp_path / "images", channels, pattern)
    seen = []
    backbone = meta_arch.student.backbone
    image = np.zeros((1, SIZE, SIZE, channels))
    params = jax.jit(backbone.init)(jax.random.key(0), image)
    normal = (pixels / 255 - np.array(config.data.mean)) / np.array(config.data.std)
    expected = jax.jit(backbone.apply)(params, normal.astype(np.float32)).cls

    features = made._features

    def spy(params, batch):
        seen.append((np.array(batch), features(params, batch)))
        return seen[-1][1]

    made._features = spy
    found = made.evaluate(params["params"], 0)
    assert ("knn/top1_color_histogram" in found) == (channels == 3)
    # Both sides hold the same images, and each is its own nearest.
    assert found["knn/top1"] == found["knn/top1_pixels"] == 1.0
    shown, tokens = (np.concatenate(x) for x in zip(*seen))
    # The random initialisation first, then the parameters; bank and queries of both.
    np.testing.assert_array_equal(shown, np.concatenate([pixels] * 4))
    np.testing.assert_allclose(tokens[12:18], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(tokens[18:], expected, rtol=1e-3, atol=1e-4)
    made.picture(params["params"], 0, tmp_path / "pca.png")
    assert (tmp_path / "pca.png").exists() == (channels != 13)


@pytest.mark.slow
def test_other_sizes_beside_the_first(tmp_path):
    """As evaluators of these sizes alone, on one part of the image."""
    config = debug.get_config()
    config.model.depth = 1
    config.evaluation.update(max_images=48, batch_size=48, picture_size=32)
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, np.float32)
    params = jax.jit(meta_arch.student.init)(jax.random.key(0))["backbone"]

    def found(**fields):
        config.evaluation.update(fields)
        checking.check(config)
        made = evaluator.make_evaluator(config, meta_arch, sharding.make_mesh(1))
        return made.evaluate(params, 0)

    alone = found(image_size=16, resize_size=20)
    first = found(image_size=32, resize_size=40)
    both = found(other_sizes=(16,))
    assert both == first | {"knn/top1_at_16": alone["knn/top1"]}
    assert alone["knn/top1"] != first["knn/top1"]


@pytest.mark.parametrize("source, tasks", [("photos", ()), ("auto", ("knn",))])
def test_nothing_is_measured_where_nothing_is_named(source, tasks):
    config = debug.get_config()
    config.data.source = source
    config.evaluation.tasks = tasks
    checking.check(config)
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, np.float32)
    mesh = sharding.make_mesh(1)
    assert evaluator.make_evaluator(config, meta_arch, mesh) is None


def test_without_labels_matching_is_measured_on_the_training_images(tmp_path):
    pixels = write(tmp_path / "images", 3)
    config = debug.get_config()
    config.data.update(source="folder", path=str(tmp_path / "images"))
    config.evaluation.tasks = ("knn", "matching")
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, np.float32)
    source, mesh = registry.make_source(config), sharding.make_mesh(1)
    assert evaluator.make_evaluator(config, meta_arch, mesh, source) is None
    config.checkpoint.keep_best = "all"
    made = evaluator.make_evaluator(config, meta_arch, mesh, source)
    assert made.tasks == ("matching",)
    images = evaluation_data.open_data(config, source).images
    assert len(images) == len(pixels)


def test_sets_of_which_no_image_can_be_read(tmp_path):
    write(tmp_path / "images", 3)
    made, _, _ = make(tmp_path / "images", 3)
    for path in (tmp_path / "images").glob("*/*.png"):
        path.write_bytes(b"no image")
    wanted = "none of 6 images of evaluation.train_path could be read: set --config"
    with pytest.raises(errors.UserError, match=wanted):
        made._labelled(lambda batch: batch)
    with pytest.raises(errors.UserError, match=wanted):
        make(tmp_path / "images", 3)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_preparation_channel_by_channel(channels):
    image = np.random.default_rng(0).integers(0, 256, (30, 47, channels), np.uint8)
    found = preprocessing.resize_and_crop(image, 20, 16)
    assert found.shape == (16, 16, channels)
    for c in range(channels):
        # As gray images of three equal channels, which are resized together.
        gray = np.repeat(image[..., c : c + 1], 3, axis=2)
        expected = preprocessing.resize_and_crop(Image.fromarray(gray), 20, 16)
        np.testing.assert_array_equal(found[..., c], expected[..., 0])


def test_labels_that_tell_nothing_are_doubted(tmp_path, caplog):
    write(tmp_path / "images", 3)
    make(tmp_path / "images", 3)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "evaluation.train_path and evaluation.val_path are the same images" in said
    assert "set --config.evaluation.val_path" in said
    caplog.clear()
    for path in (tmp_path / "images" / "1").iterdir():
        path.unlink()
    (tmp_path / "images" / "1").rmdir()
    make(tmp_path / "images", 3)
    assert "one class (0): k-NN is 100 %" in caplog.records[-1].getMessage()
