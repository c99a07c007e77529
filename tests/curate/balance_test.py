"""Gini coefficient and entropy against their definitions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from dinov2_jax.curate import balance


@pytest.mark.parametrize("sizes", [[3, 1, 8, 0], [1], [5, 5, 5], [0, 0, 7], [1, 2]])
def test_definitions(sizes):
    mean = np.mean(sizes)
    differences = [abs(a - b) for a, b in itertools.product(sizes, sizes)]
    assert balance.gini(np.array(sizes)) == pytest.approx(
        np.mean(differences) / (2 * mean)
    )
    if len(sizes) > 1:
        expected = stats.entropy(sizes) / np.log(len(sizes))
        assert balance.entropy(np.array(sizes)) == pytest.approx(expected)


def test_bounds():
    assert balance.gini(np.full(9, 4)) == 0 and balance.entropy(np.full(9, 4)) == 1
    one = np.array([0] * 999 + [5])
    assert balance.gini(one) == pytest.approx(0.999) and balance.entropy(one) == 0
