"""Which sizes of crops each step has, and which descriptions of them are refused."""

import collections

import pytest

from configs import default
from dinov2_jax import errors
from dinov2_jax.augment import crop_sizes
from dinov2_jax.config import checking

# DINOv3's stage: global and local size and share.
FIVE = (
    (512, 112, 0.3),
    (768, 112, 0.3),
    (768, 176, 0.3),
    (768, 224, 0.05),
    (768, 336, 0.05),
)


def config(sizes, seed=0, **crops):
    c = default.get_config()
    c.seed = seed
    c.crops.update(sizes=sizes, **crops)
    if sizes and not crops:
        c.crops.global_crops_size = max(row[0] for row in sizes)
        c.crops.local_crops_size = max(row[1] for row in sizes)
    return c


def drawn(steps, **kwargs):
    sizes = crop_sizes.make_crop_sizes(config(FIVE, **kwargs))
    return [sizes(step) for step in steps]


def test_every_cycle_has_the_exact_shares():
    for cycle in range(3):
        counts = collections.Counter(drawn(range(100 * cycle, 100 * cycle + 100)))
        assert counts == {row[:2]: round(100 * row[2]) for row in FIVE}


def test_sizes_depend_on_seed_and_step_alone():
    steps = list(range(250))
    assert drawn(steps) == list(reversed(drawn(reversed(steps))))
    assert drawn(steps) == [drawn([step])[0] for step in steps]
    assert drawn(steps) != drawn(steps, seed=1)
    assert drawn(range(100)) != drawn(range(100, 200))
    # Not in blocks: the first tenth of a cycle has several.
    assert len(set(drawn(range(10)))) > 2


def test_one_pair_is_always_the_same():
    for c in (config(()), config(((224, 96, 1.0),))):
        sizes = crop_sizes.make_crop_sizes(c)
        assert {sizes(step) for step in range(300)} == {(224, 96)}
        assert sizes.largest == (224, 96)


def test_the_largest_has_the_most_pixels():
    rows = ((768, 112, 0.5), (512, 336, 0.5))
    for local_crops_number, largest in ((8, (512, 336)), (2, (768, 112))):
        c = config(rows, local_crops_number=local_crops_number)
        assert crop_sizes.make_crop_sizes(c).largest == largest


def test_good_descriptions():
    for sizes in ((), FIVE, ((224, 96, 1),), tuple(map(list, FIVE))):
        checking.check(config(sizes))


@pytest.mark.parametrize(
    "sizes, words",
    [
        (((512, 112),), "must be triples (global px, local px, share)"),
        (((512, 112, 0.0),), "must be triples"),
        ((512, 112, 1.0), "must be triples"),
        (((520, 96, 1.0),), "crops of 520 px, not a multiple of model.patch_size = 16"),
        (((512, 98, 1.0),), "local crops of 98 px, not a multiple"),
        (((512, 112, 0.5), (768, 112, 0.4)), "0.5, 0.4: must be hundredths and sum"),
        (((512, 112, 0.505), (768, 112, 0.495)), "must be hundredths"),
        (((512, 112, 0.5), (512, 112, 0.5)), "has the same sizes twice"),
    ],
)
def test_bad_descriptions(sizes, words):
    c = config(())
    c.crops.sizes = sizes
    with pytest.raises(errors.UserError) as raised:
        checking.check(c)
    assert words in str(raised.value)


def test_the_two_fields_are_the_largest():
    with pytest.raises(errors.UserError) as raised:
        checking.check(config(FIVE, global_crops_size=224))
    for flag in ("global_crops_size=768", "local_crops_size=336"):
        assert f"set --config.crops.{flag}" in str(raised.value)
