import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.eval.depth import depth_metrics

ALL = depth_metrics.PROTOCOLS["pairs"]


def metrics(prediction, truth, protocol=ALL):
    found = depth_metrics.image_metrics(
        np.float32(prediction), np.float32(truth), protocol
    )
    return dict(zip(depth_metrics.ORDER, found))


def test_values_worked_out_by_hand():
    found = metrics([[1.0, 4.0, 9.0]], [[2.0, 4.0, 0.0]])
    assert found["a1"] == 0.5 and found["a3"] == 0.5
    assert found["abs_rel"] == 0.25
    assert found["sq_rel"] == 0.25
    assert found["rmse"] == pytest.approx(np.sqrt(0.5))
    assert found["rmse_log"] == pytest.approx(np.log(2) / np.sqrt(2))
    assert found["log_10"] == pytest.approx(np.log10(2) / 2)
    assert found["silog"] == pytest.approx(100 * np.log(2) / 2)


def test_the_mean_is_over_images_not_pixels():
    rows = [np.full(9, 1.0), np.full(9, 3.0), np.full(9, np.nan)]
    assert depth_metrics.mean_metrics(rows)["rmse"] == 2.0
    pooled = depth_metrics.mean_metrics(rows, [30, 10, 0], rmse="pooled")
    assert pooled["rmse"] == pytest.approx(np.sqrt((30 + 90) / 40))


def test_bounds_are_strict_and_clipped_depths_count():
    truth = np.array([[0.001, 0.5, 9.0, 10.0]], np.float32)
    assert depth_metrics.valid_pixels(truth, ALL).tolist() == [
        [False, True, True, False]
    ]
    clipped = depth_metrics.Protocol(clip=8.0)
    assert depth_metrics.valid_pixels(truth, clipped).sum() == 3
    assert metrics([[1, 1, 9.5, 9.5]], truth, clipped)["a1"] == pytest.approx(2 / 3)


def test_crops():
    assert depth_metrics.PROTOCOLS["kitti"].crop((352, 1216)) == (143, 349, 43, 1172)
    rows = np.arange(375)[:, None] + np.zeros(1242)
    assert depth_metrics.kitti_crop(rows)[0, 0] == 23
    with pytest.raises(errors.UserError, match="300x1242 px, smaller"):
        depth_metrics.kitti_crop(rows[:300])


def test_no_pixel_with_depth_is_an_error():
    with pytest.raises(errors.UserError, match="check the unit"):
        depth_metrics.mean_metrics([np.full(9, np.nan)])
