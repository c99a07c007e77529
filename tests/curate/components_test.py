"""Components, greedy groups and what is kept, beside SciPy and slow twins."""

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse import csgraph

from dinov2_jax.curate import components, hashes


def random_pairs(rng, count, number):
    left, right = np.sort(rng.integers(count, size=(2, number)), axis=0)
    apart = left < right
    return left[apart], right[apart]


def same_partition(first, second):
    return len(set(zip(first, second))) == len(set(first)) == len(set(second))


def union_find(count, left, right):
    parent = list(range(count))

    def find(x):
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in zip(left, right):
        parent[find(a)] = find(b)
    return [find(x) for x in range(count)]


@pytest.mark.parametrize("number", [0, 30, 120, 1000])
def test_connected_pairs_are_one_component(number):
    rng = np.random.default_rng(number)
    left, right = random_pairs(rng, 200, number)
    found = components.connected(200, left, right)
    assert same_partition(found.tolist(), union_find(200, left, right))
    graph = sparse.coo_array((np.ones(len(left)), (left, right)), shape=(200, 200))
    theirs = csgraph.connected_components(graph, directed=False)[1]
    numbered = components.number(found)
    sizes = np.bincount(theirs)[theirs]
    assert np.array_equal(numbered < 0, sizes == 1)
    several = sizes > 1
    assert same_partition(numbered[several].tolist(), theirs[several].tolist())


def test_components_are_numbered_by_their_first_image():
    group = np.array([7, 3, 9, 9, 3, 1, 3])
    assert components.number(group).tolist() == [-1, 0, 1, 1, 0, -1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_groups_are_those_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    left, right = random_pairs(rng, 60, 90)
    order = rng.permutation(60)
    expected = [-1] * 60
    near = set(zip(left, right)) | set(zip(right, left))
    for image in order:
        if expected[image] < 0:
            for other in range(60):
                if other == image or expected[other] < 0 and (image, other) in near:
                    expected[other] = image
    found = components.greedy(60, left, right, order)
    assert found.tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_greedy_groups_of_equal_and_near_hashes(seed):
    """Beside a loop over all pairs of images, of which `find_pairs` returns few."""
    rng = np.random.default_rng(seed)
    base = rng.integers(1, 2**64, size=(12, 2), dtype=np.uint64)
    base[6:] = base[:6] ^ np.uint64(7)  # near hashes
    values = base[rng.integers(12, size=60)]
    values[rng.integers(60, size=5)] = 0  # images without a hash
    left, right = random_pairs(rng, 60, 30)
    order = rng.permutation(60)
    near = hashes.distance(values[:, None], values) <= 3
    near[left, right] = near[right, left] = True
    expected = [-1] * 60
    for image in order:
        if expected[image] < 0:
            for other in range(60):
                if other == image or expected[other] < 0 and near[image, other]:
                    expected[other] = image
    by_hash = hashes.find_pairs(values, bits=3)
    twins = components.Twins(hashes.twins(values), *by_hash)
    for some in ((left, right), np.hstack([(left, right), by_hash])):
        found = components.greedy(60, *some, order, twins)
        assert found.tolist() == expected


def test_a_chain_is_one_component_but_not_one_greedy_group():
    """0-1-2-3-4: the ends are no pair."""
    left, right, order = np.arange(4), np.arange(1, 5), np.arange(5)
    assert len(set(components.connected(5, left, right))) == 1
    group = components.greedy(5, left, right, order)
    assert group.tolist() == [0, 0, 2, 2, 4]
    kept = components.first_of_each(components.number(group), order)
    assert kept.tolist() == [True, False, True, False, True]


def test_the_first_in_the_order_is_kept():
    component = np.array([0, -1, 0, 1, 1, 0])
    kept = components.first_of_each(component, np.array([5, 4, 3, 2, 1, 0]))
    assert kept.tolist() == [False, True, False, False, True, True]


def test_the_nearest_partner():
    names = np.array(["d", "c", "b", "a"], object)
    left, right = np.array([0, 0, 1]), np.array([1, 2, 2])
    similarity = np.array([0.5, 0.5, 0.75], np.float32)
    best, values = components.nearest(names, left, right, similarity)
    assert best.tolist() == [2, 2, 1, -1]  # "b" before "c"
    np.testing.assert_array_equal(values, np.float32([0.5, 0.75, 0.75, np.nan]))
