"""The recordings of segmentation, depth and dense features, and that they can fail."""

import pathlib

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
    assert [check for check in checks if not check[3]] == []
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
    with np.load(HERE / f"{kind}_a.npz") as file:
        arrays = dict(file)
    arrays[key] = arrays[key] + 0.001 * np.abs(arrays[key]).max()
    np.savez(tmp_path / f"{kind}_b.npz", **arrays)
    checks = replay.replay(tmp_path / f"{kind}_b.npz")
    assert {c[0].split(" ")[0] for c in checks if not c[3]} == {key}
