"""The recordings of segmentation, depth and dense features, and that they can fail."""

import pathlib

import evaluation_dense
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent / "evaluation"
CHECKS = {  # and how many quantities a file holds at least
    "depth_dpt": 16,
    "depth_lin1": 15,
    "depth_lin4": 16,
    "depth_losses": 10,
    "depth_metrics": 14,
    "pca_matching": 10,
    "resize_pad": 14,
    "schedules": 3,
    "seg_linear": 23,
    "seg_miou": 9,
    "seg_miou_reduce": 9,
    "seg_ms": 23,
}


@pytest.mark.parametrize("kind, least", CHECKS.items())
def test_equals_the_reference(kind, least):
    checks = evaluation_dense.replay(HERE / f"{kind}_a.npz")
    assert [check for check in checks if not check[3]] == []
    assert len(checks) >= least


@pytest.mark.parametrize(
    "kind, key, reported",
    [
        ("seg_miou", "area_pred", {"area_pred"}),
        ("schedules", "depth_beta1", {"depth_beta1"}),
        ("pca_matching", "match_cost", {"match_cost"}),
    ],
)
def test_a_wrong_number_is_reported(kind, key, reported):
    arrays, config = evaluation_dense.read(HERE / f"{kind}_a.npz")
    arrays[key] = arrays[key] + 0.001 * np.abs(arrays[key]).max()
    checks = evaluation_dense.KINDS[kind](arrays, config)
    assert {name for name, _, _, passed in checks if not passed} == reported


def test_kinds_by_name():
    kind = evaluation_dense.kind_of(pathlib.Path("seg_miou_reduce_b.npz"))
    assert kind == "seg_miou_reduce"
    with pytest.raises(ValueError, match="begins with none of"):
        evaluation_dense.kind_of(pathlib.Path("other.npz"))
