import dense_pairs
import jax
import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.eval.dense import dense_features, pairs
from dinov2_jax.eval.heads import head_files, head_names
from dinov2_jax.eval.segmentation import (
    mean_iou,
    segmentation_augment,
    segmentation_data,
    segmentation_head,
    segmentation_inference,
    segmentation_training,
)

SETTINGS = {
    "num_classes": 2,
    "layers": 1,
    "steps": 40,
    "batch_size": 4,
    "lr": 0.02,
    "warmup_steps": 4,
    "augmentation": segmentation_augment.Augmentation(32, 32, None, (0.9, 1.2)),
}
INFERENCE = segmentation_inference.Inference(32, None, 32, 20, batch_size=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = dense_pairs.write(tmp_path_factory.mktemp("data"), {"train": 8, "val": 3})
    return {
        split: segmentation_data.open_data(root, split=split).pairs
        for split in ("train", "val")
    }


@pytest.fixture(scope="module")
def trained(data):
    return segmentation_training.train(dense_pairs.model(), data["train"], **SETTINGS)


def test_a_trained_head_finds_the_boxes(data, trained):
    head, losses = trained
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    segmenter = segmentation_inference.Segmenter(dense_pairs.model(), head, INFERENCE)
    total = mean_iou.no_areas(2)
    for areas in segmentation_inference.evaluate(segmenter, data["val"], num_classes=2):
        total += areas
    assert mean_iou.scores(total)["mIoU"] > 0.6


def test_a_killed_training_resumes_to_the_same_head(data, trained, tmp_path):
    save = {"save": tmp_path / "training.npz", "save_every": 10}

    class Killed(Exception):
        pass

    calls = []

    class Dying(pairs.Pairs):
        def sample(self, index):
            calls.append(index)
            if len(calls) > 4 * 25:
                raise Killed
            return super().sample(index)

    train = data["train"]
    dying = Dying(train.images, train.targets, train.read_target)
    with pytest.raises(Killed):
        segmentation_training.train(dense_pairs.model(), dying, **SETTINGS, **save)
    head, losses = segmentation_training.train(
        dense_pairs.model(), train, **SETTINGS, **save
    )
    assert 10 <= len(losses) <= 30
    for name, value in trained[0].params.items():
        np.testing.assert_allclose(head.params[name], value, atol=1e-6)
    with pytest.raises(errors.UserError, match="belongs to another run"):
        segmentation_training.train(
            dense_pairs.model(), train, **SETTINGS, **save, fingerprint="other"
        )


def test_views_equal_windows_one_by_one():
    """Two scales and mirroring, by torch-like steps without merged matrices."""
    model, rng = dense_pairs.model(), np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 48, 3), np.uint8)
    params = segmentation_head.init(0, 16, 3)
    params["conv_seg.weight"] *= 100
    head = head_files.Head(head_names.Spec("segmentation", 16, 1, 3), params)
    settings = segmentation_inference.Inference(
        32, None, 32, 20, ratios=(1.0, 1.5), flip=True, batch_size=4
    )
    found = segmentation_inference.Segmenter(model, head, settings)(image)
    from dinov2_jax.eval.dense import dense_resize
    from dinov2_jax.eval.segmentation import sliding_window

    total = np.zeros((40, 48, 3))
    for size in ((32, 38), (48, 58)):
        for flip in (False, True):
            view = dense_resize.resize_image(image, size)
            view = view[:, ::-1] if flip else view
            x = model.preprocessing.normalize(view)[None]
            sums, counts = np.zeros((*size, 3)), np.zeros((*size, 1))
            for top in sliding_window.window_starts(size[0], 32, 20):
                for left in sliding_window.window_starts(size[1], 32, 20):
                    box = np.s_[top : top + 32, left : left + 32]
                    (taps,) = dense_features.dense_features(
                        model.module,
                        model.params,
                        x[:, box[0], box[1]],
                        blocks=(3,),
                        norm=True,
                    )
                    logits = segmentation_head.logits(params, taps[0])
                    sums[box] += dense_resize.bilinear(logits, (32, 32))[0]
                    counts[box] += 1
            logits = dense_resize.bilinear(sums / counts, (40, 48))
            probabilities = np.asarray(jax.nn.softmax(logits))
            total += probabilities[:, ::-1] if flip else probabilities
    top = np.sort(total, axis=-1)
    clear = top[..., 2] - top[..., 1] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], total.argmax(-1)[clear])


def test_labels_outside_the_classes_name_the_file(data):
    with pytest.raises(errors.UserError, match=r"masks/\d.png hold the value 1"):
        segmentation_training.train(
            dense_pairs.model(), data["train"], **SETTINGS | {"num_classes": 1}
        )
