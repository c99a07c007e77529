"""Hierarchical k-means: plans, resampling, resumption, and how balanced a choice is."""

import jax
import numpy as np
import pytest

from dinov2_jax import errors, sharding
from dinov2_jax.curate import allocation, hierarchy, level_state, row_blocks


class Killed(Exception):
    pass


def build(folder, rows, plans, *, kill_after=None, **settings):
    lines = []

    def log(line):
        lines.append(line)
        if len(lines) == kill_after:
            raise Killed

    settings = {"metric": "l2", "seed": 0} | settings
    with level_state.State(folder, {"plans": str(plans)}) as state:
        levels = hierarchy.build(
            row_blocks.Matrix(rows),
            plans,
            mesh=sharding.make_mesh(devices=jax.devices()[:1]),
            memory=2**40,
            state=state,
            log=log,
            **settings,
        )
    return levels, lines


def test_killed_and_resumed_is_uninterrupted(tmp_path):
    rows = np.random.default_rng(0).standard_normal((200, 8), np.float32)
    plans = hierarchy.make_plans(200, [20, 4], None, [2])
    whole, lines = build(tmp_path / "whole", rows, plans)
    assert len(lines) == 6
    assert [len(level.assignment) for level in whole] == [200, len(whole[0].centroids)]
    for _ in lines:  # killed after each k-means
        with pytest.raises(Killed):
            build(tmp_path / "killed", rows, plans, kill_after=1)
    resumed, rest = build(tmp_path / "killed", rows, plans)
    assert not rest
    for one, other in zip(whole, resumed):
        np.testing.assert_array_equal(one.centroids, other.centroids)
        np.testing.assert_array_equal(one.assignment, other.assignment)
    with pytest.raises(errors.UserError, match="unfinished run with different plans"):
        build(tmp_path / "killed", rows, plans[:1])


def test_nearest_members_by_hand():
    assignment = np.array([1, 0, 1, 1, 0, 1])
    distances = np.array([3.0, 1, 2, 2, 5, 0])
    found = hierarchy.nearest_members(assignment, distances, 2)
    assert found.tolist() == [1, 2, 4, 5]
    assert hierarchy.nearest_members(assignment, distances, 9).tolist() == [*range(6)]


@pytest.mark.parametrize(
    "count, levels",
    [
        (1, [1]),
        (60, [3]),
        (421, [21, 4]),
        (20_000, [1000, 50]),
        (100_000, [5000, 250, 12]),
        (10**9, [100_000, 5000, 250, 12]),
    ],
)
def test_default_levels(count, levels):
    assert hierarchy.default_clusters(count) == levels


def test_plans():
    plans = hierarchy.make_plans(20_000, [1000, 200, 50], [8, 3, 2], [10, 0, 1])
    assert plans[1] == hierarchy.Plan(200, 3, 0)
    assert [
        p.representatives for p in hierarchy.make_plans(90, [30, 29], None, [1])
    ] == [
        1,
        1,
    ]
    for clusters, representatives, message in [
        ([200], None, "200 clusters are too many for 100 below them"),
        ([50, 50], None, "50 clusters are too many for 50 below them"),
        ([50, 5], [3], "--representatives=3 has 1 numbers, and there are 2 levels"),
    ]:
        with pytest.raises(errors.UserError, match=message):
            hierarchy.make_plans(100, clusters, representatives, [10])


CLASSES, CHOSEN = 50, 2000


def zipf(seed, dim=32, count=20_000):
    """Rows of 50 classes by Zipf's law, each of 8 modes, and their classes."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, CLASSES + 1) ** -1.2
    labels = rng.choice(CLASSES, count, p=share / share.sum())
    centres = rng.standard_normal((CLASSES, dim))
    modes = centres[:, None] + 0.5 * rng.standard_normal((CLASSES, 8, dim))
    rows = modes[labels, rng.integers(0, 8, count)]
    rows = rows + 0.35 * rng.standard_normal((count, dim))
    return rows.astype(np.float32), labels


def entropy(labels):
    share = np.bincount(labels, minlength=CLASSES) / len(labels)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum() / np.log(CLASSES))


def balance(folder, seed):
    """Entropies of choices: at random, flat (best k), hierarchical, and the oracle."""
    rows, labels = zipf(seed)
    names = np.array([f"{i}.jpg" for i in range(len(rows))], object)

    def chosen(levels):
        times = allocation.choose(names, levels, CHOSEN, seed=seed)
        return entropy(np.repeat(labels, times))

    def levels(name, clusters, representatives, resamplings):
        plans = hierarchy.make_plans(
            len(rows), clusters, representatives, [resamplings]
        )
        built, _ = build(folder / f"{name}-{seed}", rows, plans, seed=seed)
        below, found = np.arange(len(rows)), []
        for level in built:
            below = level.assignment[below]
            found.append(below)
        return chosen(found)

    return {
        "random": chosen([]),
        "flat": max(levels(f"flat{k}", [k], None, 0) for k in (1000, 200, 50)),
        "not resampled": levels("bare", [1000, 200, 50], [8, 3, 2], 0),
        "hierarchical": levels("whole", [1000, 200, 50], [8, 3, 2], 10),
        "oracle": chosen([labels]),
    }


@pytest.mark.slow
def test_a_hierarchy_is_more_balanced_than_flat_clusters(tmp_path):
    found = [balance(tmp_path, seed) for seed in range(2)]
    mean = {name: np.mean([f[name] for f in found]) for name in found[0]}
    print(mean)
    assert mean["hierarchical"] >= mean["flat"] + 0.08
    assert mean["hierarchical"] >= 0.93 * mean["oracle"]
