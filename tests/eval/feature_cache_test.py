"""Features on the disk: killed, damaged, of other weights and images."""

import os

import numpy as np
import pytest
import random_weights
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.embed import resumable_output
from dinov2_jax.eval import feature_cache, features
from dinov2_jax.eval.classification import labelled
from dinov2_jax.weights import torch_writer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    shapes = random_weights.small_shapes("vits14_reg4")
    torch_writer.write(root / "small.pth", random_weights.tensors(shapes))
    return features.load(
        str(root / "small.pth"), num_heads=2, batch_size=2, cache=root / "features"
    )


@pytest.fixture
def images(tmp_path):
    for i in range(9):
        path = tmp_path / f"images/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "images/0/4.png").write_bytes(b"no image")
    return labelled.open_labelled(str(tmp_path / "images"), "--train-path")


def extract(backbone, images, kind="last2", **sizes):
    prepare = backbone.prepare(**({"resize": 28, "size": 28} | sizes))
    return feature_cache.extract(backbone, images, kind=kind, prepare=prepare)


def test_rows_are_the_models_own(backbone, images):
    found = extract(backbone, images)
    assert list(found.skipped) == [2] and found.indices.tolist() == [0, 1, *range(3, 9)]
    assert found.labels.tolist() == [0] * 4 + [1] * 4
    model = backbone.model
    index = found.indices[5]
    pixels = images.open(index).pixels()
    prepare = backbone.prepare(28, 28)
    out = model(prepare(pixels)[None], layers=[-2])
    expected = [out.layers[-2].cls, out.cls, out.patches.mean(axis=(1, 2))]
    np.testing.assert_allclose(found.rows[5], np.concatenate(expected), atol=2e-5)
    cls = extract(backbone, images, "cls")
    np.testing.assert_allclose(cls.rows, found.rows[:, 1], atol=2e-5)


def test_a_killed_extraction_resumes(backbone, images, monkeypatch):
    monkeypatch.setattr(resumable_output, "SAVE_SECONDS", 0.0)
    whole = extract(backbone, images, resize=30)
    rows = np.array(whole.rows)
    os.unlink(whole.rows.filename)
    append, appended = resumable_output.Unfinished.append, []

    def die_at_the_third(self, rows, **place):
        if len(appended) == 2:
            raise KeyboardInterrupt
        appended.append(len(rows))
        append(self, rows, **place)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resumable_output.Unfinished, "append", die_at_the_third)
        extract(backbone, images, resize=30)
    counted = []

    def count(self, rows, **place):
        counted.append(len(rows))
        append(self, rows, **place)

    monkeypatch.setattr(resumable_output.Unfinished, "append", count)
    again = extract(backbone, images, resize=30)
    assert sum(appended) + sum(counted) == len(rows) and len(appended) == 2
    np.testing.assert_array_equal(again.rows, rows)


def test_other_images_weights_and_sizes_are_extracted_anew(backbone, images):
    first = extract(backbone, images)
    assert extract(backbone, images).rows.filename == first.rows.filename
    part = extract(backbone, labelled.Subset(images, np.arange(3, 6)))
    names = {first.rows.filename, part.rows.filename}
    np.testing.assert_allclose(part.rows, first.rows[2:5], atol=1e-5)
    names.add(extract(backbone, images, size=14).rows.filename)
    assert len(names) == 3


def test_images_none_of_which_can_be_read(backbone, images):
    with pytest.raises(errors.UserError, match="none of 1 images could be read"):
        extract(backbone, labelled.Subset(images, np.array([2])))


def test_class_mappings():
    classes = ["cat", "dog", "emu", "fox"]
    same = labelled.class_mapping(classes, classes, "val")
    assert same is None
    assert labelled.class_mapping(classes, ["fox", "cat"], "a").tolist() == [3, 0]
    # ImageNet-V2: folders are numbers, which sort as texts.
    assert labelled.class_mapping(classes, ["0", "3", "2"], "v2").tolist() == [0, 3, 2]
    with pytest.raises(errors.UserError, match="a has 1 classes .* such as 'gnu'"):
        labelled.class_mapping(classes, ["cat", "gnu"], "a")


def test_numbers_are_classes_only_where_no_name_is_known():
    classes = ["0", "1", "2", "10"]
    with pytest.raises(errors.UserError, match="v2 has 1 classes .* such as '3'"):
        labelled.class_mapping(classes, ["0", "3"], "v2")
    with pytest.raises(errors.UserError, match="has 2 classes that --database does"):
        labelled.class_mapping(
            ["cat", "dog"], ["0", "1"], "q", known="--database", by_number=False
        )
