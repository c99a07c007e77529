"""Batches of a run of several resolutions."""

import collections

import numpy as np
import pytest

from configs import default
from dinov2_jax.augment import crop_sizes
from dinov2_jax.data import batch_builder, batch_spec, loader
from dinov2_jax.data.sources import photos

SIZES = ((16, 8, 0.5), (24, 8, 0.3), (24, 12, 0.2))


def config(sizes=SIZES):
    c = default.get_config()
    c.data.workers = 0
    c.crops.update(global_crops_size=24, local_crops_size=12, local_crops_number=2)
    c.crops.sizes = sizes
    c.model.patch_size = 4
    c.train.update(batch_size=4, group_size=2)
    return c


@pytest.fixture(scope="module")
def source():
    return photos.PhotosSource("val")


def builder(source, c=None, **kwargs):
    return batch_builder.make_batch_builder(c or config(), source, **kwargs)


def same(batch, other):
    assert batch.keys() == other.keys()
    for name, array in other.items():
        np.testing.assert_array_equal(batch[name], array, err_msg=name)


def shape_of(batch):
    return batch["global_crops"].shape[2], batch["local_crops"].shape[2]


def test_the_gram_teacher_sees_the_crops_of_each_size(source):
    """Also where the pair with the most pixels has not the largest global crop."""
    c = config(((24, 8, 0.5), (20, 12, 0.5)))
    c.crops.local_crops_number = 6
    c.gram.loss_weight = 2.0
    sizes, build = crop_sizes.make_crop_sizes(c), builder(source, c)
    assert sizes.largest.global_size == 20
    for step in range(4):
        assert "gram_crops" not in batch_spec.batch_spec(c, sizes(step))
        assert "gram_crops" not in build(step)


def test_each_batch_is_of_the_spec_of_its_size(source):
    c, build = config(), builder(source)
    sizes = crop_sizes.make_crop_sizes(c)
    seen = collections.Counter()
    for step in range(100):
        size = sizes(step)
        seen[size] += 1
        if seen[size] > 1:  # building takes time
            continue
        batch = build(step)
        batch.pop("bad_images")
        spec = batch_spec.batch_spec(c, size)
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == spec
    assert seen == {row[:2]: 100 * row[2] for row in SIZES}


def test_memory_is_for_the_largest_batch():
    def num_bytes(size=None):
        spec = batch_spec.batch_spec(config(), size).values()
        return sum(np.prod(shape) * dtype.itemsize for shape, dtype in spec)

    assert num_bytes() == max(
        num_bytes(crop_sizes.Size(*row[:2])) for row in config().crops.sizes
    )


def test_one_size_gives_the_batches_of_a_run_without_sizes(source):
    one = builder(source, config(((24, 12, 1.0),)))
    for step in (0, 7):
        same(one(step), builder(source, config(()))(step))


def test_processes_and_restarts_agree_on_every_size(source):
    whole = [builder(source)(step) for step in range(3, 9)]
    assert len({shape_of(batch) for batch in whole}) > 1
    parts = [builder(source, process_index=p, process_count=2) for p in (0, 1)]
    for step, batch in zip(range(3, 9), whole):
        both = [part(step) for part in parts]
        for name in batch:
            np.testing.assert_array_equal(
                np.concatenate([part[name] for part in both]), batch[name]
            )
    with loader.make_loader(config(), source, start_step=5, num_steps=4) as batches:
        for batch, expected in zip(batches, whole[2:], strict=True):
            same(batch, expected)


def test_a_batch_keeps_its_size_after_a_rollback(source):
    skipping = builder(source, skips=((2, 5),))
    for step in (1, 2, 3):
        same(skipping(step), builder(source)(step + (5 if step >= 2 else 0)))
