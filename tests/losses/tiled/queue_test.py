"""The queue of bottlenecks against Sinkhorn in NumPy on rows put together by hand."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import sharding
from dinov2_jax.losses.tiled import queue
from dinov2_jax.losses.tiled import targets as targets_lib

HERE = pathlib.Path(__file__).parent
ITEMS, ROWS, CHANNELS, K, TEMP = 3, 2, 6, 24, 0.05


def batches(groups, count=5):
    """(features [G, I, T, C], valid [G, I] or None, prototypes [K, C]) of each step."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = rng.standard_normal((groups, ITEMS, ROWS, CHANNELS)).astype(np.float32)
        w = rng.standard_normal((K, CHANNELS)).astype(np.float32) / 3
        valid = rng.random((groups, ITEMS)) < 0.7
        yield x / np.linalg.norm(x, axis=-1, keepdims=True), valid, w


def textbook(rows, prototypes):
    """[R, C] -> [R, K] in float64: rows and columns normalised in turn."""
    q = np.exp(rows.astype(np.float64) @ prototypes.T.astype(np.float64) / TEMP)
    for _ in range(3):
        q /= q.sum(axis=0, keepdims=True) * K
        q /= q.sum(axis=1, keepdims=True) * len(q)
    return q * len(q)


def empty(groups, num_batches):
    shapes = (("dino", num_batches, (groups, ITEMS, ROWS, CHANNELS)),)
    return queue.Queue(shapes).init()


def step(entries, x, valid, prototypes):
    """(probabilities [G, I, T, K], entries for the next step)."""
    targets, entries = queue.sinkhorn_knopp(
        x, prototypes, TEMP, valid=valid, entries=entries, term="dino"
    )
    return targets.probabilities(), entries


@pytest.mark.parametrize("masked", [False, True])
def test_rows_of_the_last_batches_are_balanced_too(masked):
    entries, jitted, before = empty(2, num_batches=2), jax.jit(step), []
    for x, valid, w in batches(groups=2):
        used = valid if masked else np.ones_like(valid)
        rows = x[used].reshape(-1, CHANNELS)
        together = np.concatenate([rows, *before[:2]])  # the newest first
        found, entries = jitted(entries, x, valid if masked else None, w)
        expected = textbook(together, w)[: len(rows)].reshape(-1, ROWS, K)
        np.testing.assert_allclose(found[used], expected, rtol=2e-5, atol=1e-8)
        if before:  # the older rows do matter
            assert np.abs(textbook(rows, w).reshape(-1, ROWS, K) - expected).max() > 0.1
        before = [rows, *before]
    kept = [rows for _, rows in zip(range(2), before)]
    held = np.asarray(entries["dino_queue"])[np.asarray(entries["dino_queue_valid"])]
    order = np.argsort(np.concatenate(kept)[:, 0])
    np.testing.assert_array_equal(
        np.sort(held.reshape(-1, CHANNELS)[:, 0]), np.concatenate(kept)[order, 0]
    )


def test_an_empty_queue_changes_nothing():
    """Places that are not filled do not count, and without a queue bits are equal."""
    x, valid, w = next(batches(groups=2))
    alone = targets_lib.sinkhorn_knopp(x, w, TEMP, valid=valid)
    none, entries = queue.sinkhorn_knopp(
        x, w, TEMP, valid=valid, entries={"ibot_queue": jnp.ones(3)}, term="dino"
    )
    assert entries == {} == queue.Queue().init()
    jax.tree.map(np.testing.assert_array_equal, none, alone)
    found, _ = step(empty(2, num_batches=3), x, valid, w)
    np.testing.assert_allclose(
        found[valid], alone.probabilities()[valid], rtol=1e-5, atol=1e-9
    )


def test_entries():
    entries = queue.Queue((("ibot", 4, (2, 5, 1, 8)),), jnp.bfloat16).init()
    assert {k: (v.shape, v.dtype) for k, v in entries.items()} == {
        "ibot_queue": ((2, 20, 1, 8), jnp.bfloat16),
        "ibot_queue_valid": ((2, 20), jnp.bool_),
    }
    assert not any(np.any(v) for v in entries.values())


def eight_devices():
    """Run in a process that has them."""
    mesh = sharding.make_mesh(replica=2)
    assert mesh.size == 8
    one, many = empty(8, 2), empty(8, 2)
    shardings = sharding.state_shardings(many, mesh)
    assert {x.spec for x in jax.tree.leaves(shardings)} == {sharding.BATCH}
    many = jax.device_put(many, shardings)
    alone, divided = jax.jit(step), jax.jit(lambda *args: step(*args))
    for x, valid, w in batches(groups=8):
        expected, one = alone(one, x, valid, w)
        with jax.set_mesh(mesh):
            rows = jax.device_put((x, valid), sharding.batch_sharding(mesh))
            found, many = divided(many, *rows, w)
        np.testing.assert_allclose(
            np.asarray(found)[valid], expected[valid], rtol=2e-5, atol=1e-8
        )
        jax.tree.map(np.testing.assert_array_equal, many, one)


@pytest.mark.slow
def test_devices_change_nothing():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[2])]),
    }
    command = "import queue_test as t; t.eight_devices()"
    subprocess.run([sys.executable, "-c", command], env=environment, check=True)
