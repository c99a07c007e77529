import numpy as np

from dinov2_jax.eval.segmentation import segmentation_augment


def test_labels_follow_the_image_and_padding_is_ignored():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8, dtype=np.uint8), 10)[None] + np.zeros((60, 1), int)
    labels = labels.astype(np.uint8)
    image = np.repeat(labels[..., None] * 30, 3, axis=2)
    augment = segmentation_augment.Augmentation(
        crop=48, short=60, long=None, ratios=(0.5, 1.5), colors=False
    )
    padded = 0
    for _ in range(20):
        out, found = augment(image, labels, rng, lambda x: np.float32(x) + 1)
        assert out.shape == (48, 48, 3) and found.shape == (48, 48)
        inside = found != 255
        padded += (~inside).sum()
        assert (out[~inside] == 0).all()
        # The image is bilinear and labels are nearest: they agree up to a pixel.
        assert np.abs(out[inside][:, 0] - 1 - 30 * found[inside]).max() <= 31
    assert padded


def test_crops_avoid_a_single_class():
    rng = np.random.default_rng(0)
    labels = np.zeros((40, 400), np.uint8)
    labels[:, 360:] = 1
    boxes = [
        segmentation_augment.crop_box(labels, 40, rng, max_share=0.75)
        for _ in range(400)
    ]
    # 19 of 361 places have two classes with at most 3/4 each; ten tries.
    mixed = np.mean([0.25 < labels[box].mean() < 0.75 for box in boxes])
    assert abs(mixed - (1 - (1 - 19 / 361) ** 10)) < 0.08


def test_each_change_of_colours_happens_half_of_the_time():
    rng = np.random.default_rng(0)
    image = rng.integers(30, 220, (8, 8, 3), np.uint8)
    outs = [segmentation_augment.distort_colors(image, rng) for _ in range(400)]
    # All four changes left out.
    same = np.mean([(out == image).all() for out in outs])
    assert abs(same - 1 / 16) < 0.04
    brighter = np.mean([float(out.mean()) - image.mean() for out in outs])
    assert abs(brighter) < 4
    assert {out.dtype for out in outs} == {np.dtype(np.uint8)}


def test_a_turn_of_the_hue_by_a_third_moves_the_channels(monkeypatch):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200  # red

    class Chosen:
        """A generator that changes the hue alone, by a third of a turn."""

        draws = iter([0.9, 0.9, 0.9, 0.1, 0.9])

        def random(self):
            return next(self.draws)

        def uniform(self, low, high):
            return 1 / 3

    out = segmentation_augment.distort_colors(image, Chosen())
    assert (out[..., 1] >= 190).all() and (out[..., 0] <= 10).all()  # green
