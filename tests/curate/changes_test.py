"""Changes of images: their sizes and contents."""

import numpy as np
import pytest

from dinov2_jax.curate import changes

PIXELS = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", changes.CHANGES)
def test_a_change_follows_its_seed_and_changes(name):
    changed = changes.apply(name, PIXELS, seed=(0, 1))
    again = changes.apply(name, PIXELS, seed=(0, 1))
    assert changed.dtype == np.uint8 and changed.ndim == 3
    np.testing.assert_array_equal(changed, again)
    assert changed.shape != PIXELS.shape or (changed != PIXELS).any()


def test_sizes_and_places():
    def change(name, seed=0):
        return changes.apply(name, PIXELS, seed=(seed,))

    assert change("half size").shape == (20, 30, 3)
    assert change("width 90 %").shape == (40, 54, 3)
    np.testing.assert_array_equal(change("mirrored"), PIXELS[:, ::-1])
    grey = change("grey")
    assert (grey[..., 0] == grey[..., 1]).all()
    crop = change("crop 50 %")
    windows = np.lib.stride_tricks.sliding_window_view(PIXELS, (20, 30, 3))[:, :, 0]
    assert (windows == crop).all(axis=(2, 3, 4)).any()
    assert not np.array_equal(crop, change("crop 50 %", seed=1))
