import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch

from dinov2_jax.eval.segmentation import sliding_window


@pytest.mark.parametrize(
    "length, wanted",
    [(683, [0, 171]), (512, [0]), (400, [0]), (1024, [0, 341, 512])],
)
def test_windows_end_at_the_border(length, wanted):
    assert sliding_window.window_starts(length, 512, 341) == wanted


def slow_merge(logits, size, new_size, window, stride):
    """Window by window at full resolution, as mmseg does it."""
    total = np.zeros((1, logits.shape[-1], *size), np.float32)
    counts = np.zeros(size, np.float32)
    tops, lefts = (sliding_window.window_starts(n, window, stride) for n in size)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            place = np.s_[
                top : min(top + window, size[0]), left : min(left + window, size[1])
            ]
            x = torch.tensor(np.moveaxis(logits[:, i, j], -1, 1))
            x = torch.nn.functional.interpolate(x, counts[place].shape, mode="bilinear")
            total[(..., *place)] += x.numpy()
            counts[place] += 1
    x = torch.tensor(total / counts)
    x = torch.nn.functional.interpolate(x, new_size, mode="bilinear")
    return np.moveaxis(x.numpy(), 1, -1)


@pytest.mark.parametrize("size", [(64, 85), (50, 40), (48, 200)])
def test_merging_equals_windows_one_by_one(size):
    rng = np.random.default_rng(0)
    a, b = (len(sliding_window.window_starts(n, 48, 32)) for n in size)
    logits = rng.standard_normal((1, a, b, 4, 3, 5), np.float32)
    settings = {"size": size, "new_size": (71, 97), "window": 48, "stride": 32}
    mine = sliding_window.merge(jnp.asarray(logits), **settings)
    wanted = slow_merge(logits, **settings)
    np.testing.assert_allclose(mine, wanted, atol=2e-5)


def test_windows_are_cut_where_they_start():
    image = np.arange(7 * 9).reshape(1, 7, 9, 1)
    windows = sliding_window.cut(image, 5, 3)
    assert windows.shape == (1, 2, 3, 5, 5, 1)
    assert windows[0, 1, 2, 0, 0, 0] == image[0, 2, 4, 0]
    assert windows[0, 1, 1, 0, 0, 0] == image[0, 2, 3, 0]
