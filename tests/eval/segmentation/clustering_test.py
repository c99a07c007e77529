import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.eval.segmentation import clustering


def planted(rng, size=(6, 8)):
    """Patches of two kinds, of any length: the left half and the right."""
    kinds = np.zeros(size, int)
    kinds[:, size[1] // 2 + 1 :] = 1  # the smaller one
    centres = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.2]])
    noise = 0.05 * rng.standard_normal((*size, 3))
    lengths = rng.uniform(0.5, 5.0, (*size, 1))
    return kinds, (centres[kinds] + noise) * lengths


def test_planted_clusters_are_found_in_all_images():
    rng = np.random.default_rng(0)
    pairs = [planted(rng), planted(rng, (4, 10))]
    centres = clustering.cluster_centres([grid for _, grid in pairs], 2)
    for kinds, grid in pairs:
        found = clustering.cluster_map(grid, centres, kinds.shape)
        np.testing.assert_array_equal(found, kinds)
        large = clustering.cluster_map(grid, centres, tuple(8 * n for n in kinds.shape))
        assert (large == np.kron(kinds, np.ones((8, 8), int))).mean() > 0.93


def test_more_clusters_than_patches_is_an_error():
    with pytest.raises(errors.UserError, match="6 patches, fewer than --clusters=7"):
        clustering.cluster_centres([np.ones((2, 3, 4))], 7)
