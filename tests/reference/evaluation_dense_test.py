"""The recordings of segmentation, depth and dense features, and that they can fail."""

import pathlib

import evaluation_dense
import numpy as np
import pytest
import replay

HERE = pathlib.Path(__file__).parent / "evaluation"
CHECKS = {  # and how many quantities a file holds at least
    "depth_dpt": 16,
    "depth_lin1": 15,
    "depth_lin4": 16,
    "depth_losses": 10,
    "depth_metrics": 14,
    "pca_matching": 10,
    "resize_pad": 14,
    "schedules": 4,
    "seg_linear": 23,
    "seg_miou": 9,
    "seg_miou_reduce": 9,
    "seg_ms": 23,
}


@pytest.mark.parametrize("kind, least", CHECKS.items())
def test_equals_the_reference(kind, least):
    checks = list(replay.replay(HERE / f"{kind}_a.npz"))
    assert [check for check in checks if not check[1] <= check[2]] == []
    assert len(checks) >= least


@pytest.mark.parametrize(
    "kind, key",
    [
        ("seg_miou", "area_pred"),
        ("schedules", "depth_beta1"),
        ("pca_matching", "match_cost"),
    ],
)
def test_a_wrong_number_is_reported(kind, key, tmp_path):
    arrays = dict(np.load(HERE / f"{kind}_a.npz"))
    arrays[key] = arrays[key] + 0.001 * np.abs(arrays[key]).max()
    np.savez(tmp_path / f"{kind}_b.npz", **arrays)
    checks = evaluation_dense.REPLAYS[kind](np.load(tmp_path / f"{kind}_b.npz"))
    wrong = {name.split(" ")[0] for name, error, allowed in checks if error > allowed}
    assert wrong == {key}
