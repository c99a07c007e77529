"""Exact search against a full sort."""

import numpy as np
import pytest

from dinov2_jax.eval.classification import nearest


def found(bank, queries, k):
    blocks = list(nearest.Bank(bank).search(queries, k))
    assert [b[0].start for b in blocks[1:]] == [b[0].stop for b in blocks[:-1]]
    return [np.concatenate([block[i] for block in blocks]) for i in (1, 2)]


# The second has few enough neighbours for the search by blocks of columns.
@pytest.mark.parametrize("size, k", [(130, 130), (3000, 9), (65, 1)])
def test_equals_a_full_sort(size, k):
    rng = np.random.default_rng(size)
    bank = rng.normal(size=(size, 24)) * rng.uniform(0.1, 9, (size, 1))
    queries = rng.normal(size=(37, 24)).astype(np.float32)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        bank / np.linalg.norm(bank, axis=1, keepdims=True)
    ).T
    expected = np.argsort(-cosines, axis=1)[:, :k]
    similar, neighbours = found(bank, queries, k)
    np.testing.assert_array_equal(neighbours, expected)
    np.testing.assert_allclose(
        similar, np.take_along_axis(cosines, expected, axis=1), atol=1e-6
    )


def test_equal_features_keep_their_order():
    bank = np.repeat(np.random.default_rng(1).normal(size=(300, 8)), 10, axis=0)
    _, neighbours = found(bank, bank[::500], 10)
    expected = np.arange(0, 3000, 500)[:, None] + np.arange(10)
    np.testing.assert_array_equal(neighbours, expected)


def test_blocks_of_queries_change_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    bank, queries = rng.normal(size=(200, 8)), rng.normal(size=(31, 8))
    whole = found(bank, queries, 5)
    monkeypatch.setattr(nearest, "_MAX_QUERIES", 4)
    for ours, expected in zip(found(bank, queries, 5), whole):
        np.testing.assert_array_equal(ours, expected)


def test_wrong_numbers_of_neighbours():
    with pytest.raises(ValueError, match="k=4 neighbours of 3"):
        list(nearest.Bank(np.ones((3, 2))).search(np.ones((1, 2)), 4))
