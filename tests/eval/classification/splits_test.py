"""Random subsets against PyTorch's own permutations."""

import numpy as np
import pytest

from dinov2_jax.eval.classification import splits


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31])
def test_permutations_are_those_of_torch(seed):
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    shuffle = splits.ReferenceShuffle(seed)
    for count in (10, 1, 2, 0, 1237):  # one stream of random words for all
        expected = torch.randperm(count).numpy()
        np.testing.assert_array_equal(shuffle.permutation(count), expected)


def test_few_shot_takes_what_torch_takes_of_each_class():
    torch = pytest.importorskip("torch")
    labels = np.random.default_rng(0).choice([1, 4, 5, 9], 60, p=[0.5, 0.3, 0.1, 0.1])
    torch.manual_seed(3)
    expected = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        expected += list(members[torch.randperm(len(members)).numpy()][:8])
    np.testing.assert_array_equal(splits.few_shot(labels, 8, 3), expected)
    counts = np.bincount(labels[expected])
    assert counts.max() == 8 and counts[counts > 0].min() < 8  # one class is smaller


def test_parts_are_disjoint_and_complete():
    train, held_out = splits.hold_out(57, share=0.2, seed=5)
    assert len(held_out) == 11
    assert sorted([*train, *held_out]) == list(range(57))
    with pytest.raises(ValueError, match="9 images"):
        splits.hold_out(9)
