"""Exact search for pairs, beside NumPy and faiss."""

import jax
import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.curate import search


class Array:
    """An array with the interface of features."""

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)

    def __len__(self):
        return len(self.values)

    def rows(self, start, stop):
        return self.values[start:stop]

    def take(self, rows):
        return self.values[rows]


def exact_features(rng, count, dim=24):
    """Rows with four entries of 1 or -1, whose similarities are multiples of 1/4."""
    places = np.argsort(rng.random((count, dim)), axis=1)[:, :4]
    rows = np.zeros((count, dim), np.float32)
    np.put_along_axis(rows, places, rng.choice([-3.0, 3.0], (count, 4)), axis=1)
    return rows


def brute_force(rows, others, threshold):
    """(left, right, similarity) by one product in float64."""
    rows, others = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (rows.astype(np.float64), others.astype(np.float64))
    )
    similar = rows @ others.T
    left, right = np.nonzero(similar > threshold)
    return left, right, similar[left, right]


@pytest.mark.parametrize("count", [2000, 33, 1])
def test_pairs_are_those_of_numpy(count):
    rows = exact_features(np.random.default_rng(count), count)
    found = search.find_pairs(Array(rows), threshold=0.7)
    left, right, similarity = brute_force(rows, rows, 0.7)
    upper = left < right
    assert count < 100 or len(found) > 1000
    np.testing.assert_array_equal(found.left, left[upper])
    np.testing.assert_array_equal(found.right, right[upper])
    np.testing.assert_array_equal(found.similarity, similarity[upper])


def test_pairs_with_another_set_are_those_of_numpy():
    rng = np.random.default_rng(0)
    rows, others = exact_features(rng, 700), exact_features(rng, 90)
    found = search.find_pairs(Array(rows), others=Array(others), threshold=0.3)
    left, right, similarity = brute_force(rows, others, 0.3)
    assert len(found) > 100
    np.testing.assert_array_equal(found.left, left)
    np.testing.assert_array_equal(found.right, right)
    np.testing.assert_array_equal(found.similarity, similarity)


def test_devices_slabs_and_blocks_change_nothing(monkeypatch):
    """Also a first pass as coarse as that of accelerators."""
    rows = np.random.default_rng(1).normal(size=(500, 16))
    whole = search.find_pairs(Array(rows), threshold=0.6)
    assert len(whole) > 100
    monkeypatch.setattr(search, "_CPU_BLOCK", (64, 32))
    monkeypatch.setattr(search, "_CPU_SLAB_BYTES", 2 * 32 * 16 * 4)
    monkeypatch.setattr(search, "_CPU_MARGIN", search._MARGIN)
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one * 3)
    parts = search.find_pairs(Array(rows), threshold=0.6)
    np.testing.assert_array_equal(parts.left, whole.left)
    np.testing.assert_array_equal(parts.right, whole.right)
    np.testing.assert_allclose(parts.similarity, whole.similarity, atol=1e-6)
    # Few pairs, so that one that is barely above the threshold is alone in its tile.
    threshold = float(np.sort(whole.similarity)[-21:-19].mean())
    assert len(search.find_pairs(Array(rows), threshold=threshold)) == 20


def test_files_are_read_in_order(monkeypatch):
    """Going back makes a features file read a whole row group again."""
    monkeypatch.setattr(search, "_CPU_BLOCK", (32, 32))
    monkeypatch.setattr(search, "_CPU_SLAB_BYTES", 8 * 32 * 16 * 4)  # 256 rows
    starts = []

    class File(Array):
        def rows(self, start, stop):
            starts.append(start)
            return super().rows(start, stop)

    search.find_pairs(File(np.eye(1024, 16) + 1), threshold=0.99)
    assert len(starts) > 3 * 1024 / 32
    # Once for each of four slabs, and once for the width.
    assert np.sum(np.diff(starts) < 0) <= 2 * 4 + 1


def test_pairs_are_those_of_faiss():
    faiss = pytest.importorskip("faiss")
    rows = np.random.default_rng(2).normal(size=(1500, 32)).astype(np.float32)
    rows[700:750] = rows[:50] + 0.1 * rows[800:850]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(32)
    index.add(unit)
    limits, similarity, right = index.range_search(unit, 0.65)
    left = np.repeat(np.arange(len(rows)), np.diff(limits).astype(int))
    expected = {(a, b): value for a, b, value in zip(left, right, similarity) if a < b}
    found = search.find_pairs(Array(rows), threshold=0.65)
    pairs = dict(zip(zip(found.left, found.right), found.similarity))
    assert len(expected) >= 50
    # At the threshold itself the two may round differently.
    for pair in expected.keys() ^ pairs.keys():
        assert abs({**expected, **pairs}[pair] - 0.65) < 1e-6
    for pair in expected.keys() & pairs.keys():
        assert abs(expected[pair] - pairs[pair]) < 1e-6


def test_images_change_places():
    """A permutation of the rows permutes the pairs."""
    rng = np.random.default_rng(3)
    rows = exact_features(rng, 300)
    order = rng.permutation(300)
    found = search.find_pairs(Array(rows), threshold=0.6)
    permuted = search.find_pairs(Array(rows[order]), threshold=0.6)
    back = np.sort(np.stack([order[permuted.left], order[permuted.right]]), axis=0)
    assert set(zip(*back)) == set(zip(found.left, found.right))


def test_similarities_of_given_pairs():
    rows = exact_features(np.random.default_rng(4), 40)
    left, right = np.array([3, 0, 39]), np.array([1, 0, 5])
    unit = rows / 6
    np.testing.assert_array_equal(
        search.similarities(Array(rows), left, right), (unit[left] * unit[right]).sum(1)
    )


def test_refused():
    rows = Array(np.ones((50, 4)))
    with pytest.raises(errors.UserError, match="more than 1,000 pairs .* higher"):
        search.find_pairs(rows, threshold=0.5, most=1000)
    for threshold in (0.0, 1.0, -0.2, float("nan")):
        with pytest.raises(errors.UserError, match="between 0 and 1"):
            search.find_pairs(rows, threshold=threshold)


def test_zeros_are_like_nothing():
    rows = np.zeros((40, 4))
    rows[:2] = 1.0
    found = search.find_pairs(Array(rows), threshold=0.01)
    assert (found.left.tolist(), found.right.tolist()) == ([0], [1])
