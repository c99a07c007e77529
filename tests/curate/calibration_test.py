"""Calibration of a threshold, with pixels as features."""

import time

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dinov2_jax import errors
from dinov2_jax.curate import calibration, changes, features, hashes, image_files
from dinov2_jax.data.sources import photos


def thumbnail(pixels):
    small = Image.fromarray(pixels).convert("L").resize((6, 6), 3)
    return np.asarray(small, np.float32).ravel() - 128


def embed(prepared, count):
    rows = list(prepared)
    assert len(rows) == count
    return np.stack(rows)


EMBEDDER = calibration.Embedder(thumbnail, embed)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Photograph windows with their thumbnails as features, the first there twice."""
    folder = tmp_path_factory.mktemp("pool")
    source = photos.PhotosSource("train")
    pictures = [source.open(i).pixels() for i in range(0, len(source), 16)]
    pictures.append(pictures[0])
    paths = [folder / f"{i:02}.png" for i in range(len(pictures))]
    for path, pixels in zip(paths, pictures):
        Image.fromarray(pixels).save(path)
    rows = np.stack([thumbnail(x) for x in pictures])
    table = {
        "name": [path.name for path in paths],
        "path": pa.array([str(path).encode() for path in paths], pa.binary()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 36),
    }
    parquet.write_table(pa.table(table), folder / "f.parquet")
    return features.open_features([folder / "f.parquet"]), pictures


def test_recall_and_price_are_those_of_a_slow_count(pool):
    """All images are changed, so that every neighbour is known."""
    table, pictures = pool
    found = calibration.calibrate(
        table, image_files.ImageFiles(table), EMBEDDER, count=1000, bits=8, seed=1
    )
    rows = features.unit(np.stack([thumbnail(x) for x in pictures]))
    own = np.stack([hashes.image_hashes(x) for x in pictures])
    similar = (rows @ rows.T).astype(np.float64)
    similar[hashes.distance(own[:, None], own) <= 8] = -1  # itself and its copies
    strangers = similar.max(axis=1)
    np.testing.assert_allclose(found.strangers, strangers, atol=1e-5)
    assert found.pairs[0][2] == found.strangers.max()
    for threshold in (0.6, 0.9):
        price = np.mean(strangers > threshold)
        assert found.price(threshold) == pytest.approx(price)
        for at, (name, by_features, _, either) in enumerate(found.recalls(threshold)):
            changed = [
                changes.apply(name, x, seed=(1, i, at)) for i, x in enumerate(pictures)
            ]
            theirs = features.unit(np.stack([thumbnail(x) for x in changed]))
            near = (rows * theirs).sum(axis=1) > threshold
            theirs = np.stack([hashes.image_hashes(x) for x in changed])
            hashed = hashes.distance(own, theirs) <= 8
            assert by_features == pytest.approx(near.mean())
            assert either == pytest.approx((near | hashed).mean())


def test_the_proposal_is_the_lowest_of_its_price(pool):
    strangers = np.linspace(0.2, 0.8, 500, dtype=np.float32)
    some = np.zeros((500, 1))
    found = calibration.Calibration(["x"], some, some > 0, strangers, [], 500)
    proposed = found.proposal()
    assert found.price(proposed) <= 0.01 < found.price(proposed - 2e-3)
    few = calibration.Calibration(["x"], some, some > 0, strangers[:50], [], 500)
    assert few.price(few.proposal()) == 0
    assert found.excess(proposed) == few.excess(few.proposal()) == ""


def test_a_proposal_that_costs_too_much_says_so():
    strangers = np.where(np.arange(500) < 15, 0.99995, 0.5).astype(np.float32)
    some = np.zeros((500, 1))
    found = calibration.Calibration(["x"], some, some > 0, strangers, [], 500)
    assert found.proposal() == 0.9999
    assert "still 3.0% of the images" in found.excess(0.9999)
    assert "more than 1%" in found.excess(0.9999)


def test_a_choice_follows_the_seed(pool):
    table, _ = pool
    images = image_files.ImageFiles(table)
    first, again, other = (
        calibration.calibrate(table, images, EMBEDDER, count=4, bits=8, seed=seed)
        for seed in (0, 0, 5)
    )
    np.testing.assert_array_equal(first.similarity, again.similarity)
    assert first.pairs == again.pairs != other.pairs


def test_images_that_are_gone(pool, tmp_path):
    table, _ = pool
    images = image_files.ImageFiles(table, tmp_path)

    def none(prepared, count):
        assert not list(prepared)
        return np.empty((0, 36), np.float32)

    embedder = calibration.Embedder(thumbnail, none)
    with pytest.raises(errors.UserError, match="none of 3 images can be read"):
        calibration.calibrate(table, images, embedder, count=3, bits=8, seed=0)


def test_few_images_are_in_memory(pool, monkeypatch):
    """A slow model does not let decoded images pile up."""
    table, pictures = pool
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    begun, most = [], []

    def prepare(picture):
        begun.append(picture.shape)
        return thumbnail(picture)

    def slow(prepared, count):
        rows = []
        for number, row in enumerate(prepared):
            rows.append(row)
            if number % len(changes.CHANGES) == 0:
                time.sleep(0.05)
            most.append(len(begun) - len(rows))
        return np.stack(rows)

    embedder = calibration.Embedder(prepare, slow)
    images = image_files.ImageFiles(table)
    calibration.calibrate(table, images, embedder, count=1000, bits=8, seed=0)
    assert len(begun) == len(pictures) * len(changes.CHANGES)
    assert max(most) <= 9 * len(changes.CHANGES) < len(begun) // 2
