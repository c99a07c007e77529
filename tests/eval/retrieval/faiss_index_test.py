"""faiss against the exact search."""

import numpy as np
import pytest

from dinov2_jax.eval.classification import nearest
from dinov2_jax.eval.retrieval import faiss_index

pytest.importorskip("faiss")


@pytest.fixture
def features(tmp_path):
    """Features of 3,000 images around 30 centres, the path of their file, queries."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 16))
    rows = centres[np.arange(3000) % 30] + 0.3 * rng.normal(size=(3000, 16))
    rows *= rng.uniform(0.5, 2, (3000, 1))
    path = tmp_path / "features.npy"
    np.save(path, rows.astype(np.float32))
    queries = centres[:9] + 0.3 * rng.normal(size=(9, 16))
    return np.load(path, mmap_mode="r"), path, queries.astype(np.float32)


def exact(rows, queries, k):
    ((_, similar, found),) = nearest.Bank(rows).search(queries, k)
    return similar, found


def test_all_clusters_give_the_exact_result(features):
    rows, path, queries = features
    similar, found = faiss_index.search(rows, queries, 7, path=path, probes=10_000)
    expected = exact(rows, queries, 7)
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_allclose(similar, expected[0], atol=1e-5)


def test_few_clusters_find_most_and_the_index_is_kept(features):
    rows, path, queries = features
    _, found = faiss_index.search(rows, queries, 7, path=path, probes=8)
    expected = exact(rows, queries, 7)[1]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found, expected)]) > 0.9
    kept = path.with_suffix(".faiss")
    written = kept.stat().st_mtime_ns
    # More neighbours than a cluster has: others are looked into.
    _, found = faiss_index.search(rows, queries, 500, path=path, probes=1)
    assert (found >= 0).all() and kept.stat().st_mtime_ns == written
    kept.write_bytes(kept.read_bytes()[:100])
    _, found = faiss_index.search(rows, queries, 3, path=path, probes=10_000)
    np.testing.assert_array_equal(found, expected[:, :3])
