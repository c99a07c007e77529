"""The start of k-means: that rows are drawn by their distances."""

import jax
import numpy as np
import pytest

from dinov2_jax import sharding
from dinov2_jax.curate import kmeans_start, row_blocks

CLUSTERS = 20


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


def start(rows, mesh, seed=0):
    blocks = row_blocks.RowBlocks(row_blocks.Matrix(rows), mesh=mesh, memory=2**40)
    centroids, found = kmeans_start.plus_plus(blocks, CLUSTERS, unit=False, seed=seed)
    return np.asarray(centroids), np.asarray(found)


def test_each_separate_cluster_gives_one_row(mesh):
    rng = np.random.default_rng(0)
    centres = 100 * rng.standard_normal((CLUSTERS, 4))
    rows = np.tile(centres, (100, 1)) + 1e-3 * rng.standard_normal((2000, 4))
    for seed in range(3):
        centroids, found = start(rows.astype(np.float32), mesh, seed)
        nearest = ((centroids[:, None] - centres) ** 2).sum(-1).argmin(1)
        assert found.all() and len(set(nearest)) == CLUSTERS


def test_rows_are_taken_in_proportion_to_squared_distances(mesh):
    rows = np.zeros((2000, 4), np.float32)
    rows[1990:, 0], rows[1000:1990, 0] = 10, 1  # 10 at distance 10, 990 at distance 1
    second = [start(rows, mesh, seed)[0][:2, 0] for seed in range(40)]
    from_zero = [pair[1] for pair in second if pair[0] == 0]
    # Squared distances: 10 * 100 against 990 * 1, so half of the draws each.
    assert 0.25 < np.mean(np.array(from_zero) == 10) < 0.75


def test_copies_are_not_taken_twice(mesh):
    rows = np.repeat(np.eye(4, dtype=np.float32), 500, axis=0)
    centroids, found = start(rows, mesh)
    assert found.sum() == 4 and len(np.unique(centroids[found], axis=0)) == 4
