"""k-means: against scikit-learn and NumPy, and what must change nothing."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster

from dinov2_jax import errors, sharding
from dinov2_jax.curate import kmeans, metrics, row_blocks

HERE = pathlib.Path(__file__).parent
CLUSTERS = 20


def blocks(rows, memory=2**40, devices=1):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    source = rows if hasattr(rows, "blocks") else row_blocks.Matrix(rows)
    return row_blocks.RowBlocks(source, mesh=mesh, memory=memory)


def fit(rows, k=CLUSTERS, *, metric="l2-raw", seed=0, **settings):
    metric = metrics.METRICS[metric]
    return kmeans.fit(blocks(rows, **settings), k, metric=metric, seed=seed)


def squares(rows, centroids):
    """Squared distances in float64, [n, K]."""
    rows, centroids = rows.astype(np.float64), centroids.astype(np.float64)
    return ((rows[:, None] - centroids) ** 2).sum(-1)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).standard_normal((2000, 4), np.float32)


@pytest.fixture(scope="module")
def found(rows):
    return fit(rows)


def test_inertia_is_scikit_learns(rows, found):
    ours = [found.inertia, *(fit(rows, seed=seed).inertia for seed in (1, 2))]
    peers = [
        cluster.KMeans(CLUSTERS, n_init=1, random_state=seed).fit(rows).inertia_
        for seed in range(10)
    ]
    assert np.mean(ours) <= 1.01 * np.mean(peers)


def test_result_is_consistent(rows, found):
    distances = squares(rows, found.centroids)
    np.testing.assert_array_equal(found.assignment, distances.argmin(1))
    np.testing.assert_allclose(found.distances, distances.min(1), rtol=1e-4, atol=1e-6)
    assert len(found.centroids) == CLUSTERS == len(np.unique(found.assignment))
    # Nearly a fixed point: centroids are the means of their rows.
    means = [rows[found.assignment == i].mean(0) for i in range(CLUSTERS)]
    np.testing.assert_allclose(found.centroids, means, atol=0.05)


def test_same_seed_gives_same_bits_and_another_seed_others(rows, found):
    again, other = fit(rows), fit(rows, seed=1)
    np.testing.assert_array_equal(again.centroids, found.centroids)
    assert not np.array_equal(other.assignment, found.assignment)


def test_streamed_rows_give_the_same_bits(rows, found, monkeypatch):
    monkeypatch.setattr(row_blocks, "_BLOCK_BYTES", 4 * 4 * 512)
    kept, streamed = fit(rows), fit(rows, memory=0)
    assert streamed.steps == kept.steps
    np.testing.assert_array_equal(streamed.centroids, kept.centroids)
    np.testing.assert_array_equal(streamed.assignment, kept.assignment)
    np.testing.assert_allclose(kept.inertia, found.inertia, rtol=0.02)


def test_chosen_rows_are_those_rows(rows, monkeypatch):
    monkeypatch.setattr(row_blocks, "_BLOCK_BYTES", 4 * 4 * 256)
    members = np.flatnonzero(np.random.default_rng(1).random(len(rows)) < 0.4)
    for memory in (0, 2**40):
        chosen = blocks(rows, memory=memory).choose(members)
        assert len(chosen) == len(members)
        starts, parts = zip(*chosen.blocks(100))
        np.testing.assert_array_equal(np.concatenate(parts), rows[members])
        assert list(starts) == list(np.cumsum([0, *map(len, parts)])[:-1])
        on_devices = [np.asarray(b.rows)[: b.count] for b in chosen]
        np.testing.assert_array_equal(np.concatenate(on_devices), rows[members])


def test_half_precision_rows_stay_so(rows):
    half = rows.astype(np.float16)
    assert {b.rows.dtype for b in blocks(half)} == {jnp.dtype("float16")}
    exact = fit(half.astype(np.float32))
    np.testing.assert_array_equal(fit(half).centroids, exact.centroids)


def test_metrics(rows):
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    by_unit, cosine = fit(rows, metric="l2"), fit(rows, metric="cosine")
    directions = squares(rows / lengths, by_unit.centroids)
    np.testing.assert_array_equal(by_unit.assignment, directions.argmin(1))
    np.testing.assert_allclose(np.linalg.norm(cosine.centroids, axis=1), 1, rtol=1e-5)
    similar = (rows / lengths) @ cosine.centroids.T
    np.testing.assert_array_equal(cosine.assignment, similar.argmax(1))


def test_equal_centroids_take_the_first(rows):
    centroids = rows[[5, 9, 5, 9]]
    found = kmeans.nearest(blocks(rows), centroids, metric=metrics.METRICS["l2-raw"])
    assert set(found) == {0, 1}


def test_few_distinct_rows(rows):
    copies = rows[np.arange(len(rows)) % 3]
    found = fit(copies)
    assert len(found.centroids) == 3 and found.inertia < 1e-6
    constant = fit(np.ones_like(rows))
    assert len(constant.centroids) == 1 and not constant.assignment.any()
    zeros = fit(np.zeros_like(rows), metric="l2")
    assert len(zeros.centroids) == 1 and zeros.inertia == 0
    every = fit(rows[:CLUSTERS])
    assert sorted(every.assignment) == list(range(CLUSTERS)) and every.inertia == 0


def test_empty_clusters_split_the_widest():
    totals = kmeans._Totals(
        sums=jnp.array([[30.0, 0], [0, 0], [0, 50], [0, 0]]),
        counts=jnp.array([10, 0, 10, 0], jnp.int32),
        spread=jnp.array([40.0, 0, 10, 0]),
    )
    centroids, alive, splits = kmeans._update(totals, spherical=False)
    centroids = np.asarray(centroids)
    assert alive.all() and splits == 2
    np.testing.assert_allclose(centroids[2], [0, 5], atol=1e-6)
    # Both empty ones lie beside the first: 40 and then 20 are more than 10.
    assert np.linalg.norm(centroids[[0, 1, 3]] - [3, 0], axis=1).max() < 0.5
    assert len(np.unique(centroids, axis=0)) == 4


def test_wrong_rows_are_refused(rows):
    with pytest.raises(errors.UserError, match="20 clusters of 5 rows: ask for"):
        fit(rows[:5])
    wrong = rows.copy()
    wrong[[7, 9], 1] = np.nan, np.inf
    with pytest.raises(errors.UserError, match="row 7 .* nor are 1 others"):
        fit(wrong)


def eight_devices():
    rows = np.random.default_rng(0).standard_normal((20_003, 16), np.float32)
    for metric in metrics.METRICS:
        one = fit(rows, 50, metric=metric)
        eight = fit(rows, 50, metric=metric, devices=8)
        assert eight.inertia == pytest.approx(one.inertia, rel=1e-5)
        assert (one.assignment == eight.assignment).mean() >= 0.999


@pytest.mark.slow
def test_one_device_equals_eight():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
    }
    command = "import kmeans_test as t; t.eight_devices()"
    subprocess.run([sys.executable, "-c", command], env=environment, check=True)


def test_memory_is_that_of_the_job(tmp_path):
    """As control groups limit it; "max" and a file that is not there limit nothing."""
    of_the_machine = row_blocks._machine_memory(tmp_path)
    assert of_the_machine > 2**30
    (tmp_path / "memory.max").write_text("max\n")
    assert row_blocks._machine_memory(tmp_path) == of_the_machine
    (tmp_path / "memory.max").write_text("1000000\n")
    assert row_blocks._machine_memory(tmp_path) == 10**6
