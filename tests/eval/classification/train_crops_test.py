"""Random crops: the reference's transform; a batch depends on the step alone."""

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.eval.classification import train_crops


class Pictures:
    """Images of random sizes in memory; some cannot be read."""

    def __init__(self, count=11, bad=()):
        rng = np.random.default_rng(0)
        self.bad, self.labels = bad, np.arange(count)
        sizes = rng.integers(20, 60, (count, 2))
        self.pixels = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]

    def __len__(self):
        return len(self.pixels)

    def open(self, index):
        if index in self.bad:
            raise image_decoder.BadImage(str(index), "damaged")
        return image_decoder.from_array(self.pixels[index])


def run(source, start=0, stop=4, workers=3, **options):
    order = train_crops.TrainOrder(len(source), 5, seed=2)
    return list(
        train_crops.batches(
            source,
            order,
            size=14,
            seed=2,
            start=start,
            stop=stop,
            workers=workers,
            **options,
        )
    )


def test_a_batch_depends_on_the_step_alone():
    whole = run(Pictures())
    resumed = run(Pictures(), start=2, workers=1)
    assert len(whole) == 4 and len(resumed) == 2
    for ours, expected in zip(resumed, whole[2:]):
        np.testing.assert_array_equal(ours[0], expected[0])
        np.testing.assert_array_equal(ours[1], expected[1])
    labels = np.concatenate([batch[1] for batch in whole])
    assert sorted(labels[:11]) == list(range(11))  # a pass shows every image once
    assert sorted(labels[:11]) != list(labels[:11])
    assert not np.array_equal(labels[:9], labels[11:])  # the next in another order


def test_the_crop_is_pillows():
    image = image_decoder.from_array(Pictures().pixels[0])
    flips = 0
    for seed in range(20):
        ours = train_crops.random_crop(image, np.random.default_rng(seed), 14)
        rng = np.random.default_rng(seed)
        box = train_crops.crop_boxes.random_crop_box(
            rng, width=image.width, height=image.height, scale=(0.08, 1.0)
        )
        expected = Image.fromarray(image.pixels()).crop(box)
        expected = expected.resize((14, 14), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            expected, flips = (
                expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
                flips + 1,
            )
        np.testing.assert_array_equal(ours, np.asarray(expected))
    assert 4 < flips < 16


def test_images_are_cut_in_another_way():
    source = Pictures()

    def cut(image, rng, size):
        return image.pixels()[:size, :size]

    for images, labels in run(source, cut=cut):
        for image, label in zip(images, labels):
            np.testing.assert_array_equal(image, source.pixels[label][:14, :14])


def test_unreadable_images_are_replaced():
    labels = np.concatenate([batch[1] for batch in run(Pictures(bad=(3, 4)))])
    assert 3 not in labels and 4 not in labels and len(labels) == 20
    with pytest.raises(errors.UserError, match="100 training images in a row cannot"):
        run(Pictures(bad=range(11)))
