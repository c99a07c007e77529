import dense_pairs
import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.eval.depth import (
    depth_augment,
    depth_data,
    depth_metrics,
    depth_model,
    dpt_head,
)
from dinov2_jax.eval.heads import head_files, head_names

SETTINGS = {
    "depth_range": (0.001, 10.0),
    "augmentation": depth_augment.Augmentation(crop=(32, 32)),
    "steps": 100,
    "batch_size": 4,
    "lr": 0.1,
    "warmup_steps": 5,
    "warm_up_loss": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = dense_pairs.write(tmp_path_factory.mktemp("data"), {"train": 8, "test": 3})
    return {s: depth_data.depth_pairs(root, split=s) for s in ("train", "test")}


@pytest.mark.slow  # the task is tested with fewer steps
def test_a_trained_head_sees_that_boxes_are_nearer(data):
    head, losses = depth_model.train(
        dense_pairs.model(), data["train"], kind="lin4", **SETTINGS
    )
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    estimator = depth_model.DepthEstimator(dense_pairs.model(), head)
    near, far = [], []
    for i in range(len(data["test"])):
        image, truth = data["test"].sample(i)
        depth = estimator(image)
        near.append(depth[truth == 2.0].mean())
        far.append(depth[truth == 4.0].mean())
    assert np.mean(near) < 0.75 * np.mean(far)
    protocol = depth_metrics.PROTOCOLS["pairs"]
    rows = list(depth_model.evaluate(estimator, data["test"], protocol))
    assert [row.count for row in rows] == [40 * 46] * 3
    assert depth_metrics.mean_metrics([row.metrics for row in rows])["rmse"] < 2.0


def test_mirroring_makes_maps_symmetric(data):
    params = dpt_head.init(0, 16)
    spec = head_names.Spec("dpt", 16, 4, depth_range=(0.001, 10.0))
    head = head_files.Head(spec, params)
    estimator = depth_model.DepthEstimator(dense_pairs.model(), head, flip=True)
    image = data["test"].sample(0)[0]
    depth = estimator(image)
    assert depth.shape == (40, 48) and depth.min() >= 0.001
    np.testing.assert_allclose(
        estimator(image[:, ::-1])[:, ::-1], depth, rtol=1e-5, atol=1e-6
    )


def test_a_crop_larger_than_the_images_is_named(data):
    settings = SETTINGS | {"augmentation": depth_augment.AUGMENTATIONS["pairs"]}
    with pytest.raises(errors.UserError, match="40x48 px, smaller than the crop"):
        depth_model.train(dense_pairs.model(), data["train"], kind="lin1", **settings)


def test_augmentation_keeps_image_and_depth_together():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (60, 80)).astype(np.float32)
    image = np.repeat((depth * 25).astype(np.uint8)[..., None], 3, axis=2)
    augment = depth_augment.Augmentation(crop=(20, 30), degrees=0.0)
    for _ in range(20):
        out, truth = augment(image, depth, rng, lambda x: x)
        assert out.shape == (20, 30, 3) and truth.shape == (20, 30)
        assert np.corrcoef(out.mean(-1).ravel(), truth.ravel())[0, 1] > 0.99
