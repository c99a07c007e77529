"""Masking: recorded constants of the reference, and properties of its generator."""

import random

import numpy as np
import pytest

from dinov2_jax.data import masking

USUAL = dict(probability=0.5, ratio_min_max=(0.1, 0.5))


def make(seed, num_crops=128, grid=(16, 16), **changes):
    rng = np.random.default_rng(seed)
    return masking.group_masks(
        rng, num_crops=num_crops, grid=grid, **{**USUAL, **changes}
    )


def bound(num_crops=128, num_patches=256, **changes):
    return masking.max_masked(
        num_crops=num_crops, num_patches=num_patches, **{**USUAL, **changes}
    )


def test_bound_of_64_images_at_16x16():
    assert bound() == 4941


def test_counts_are_those_recorded():
    # The reference gave 4872 to 4887 in a few groups of 64 images.
    masks = [make(seed) for seed in range(12)]
    counts = [m.sum() for m in masks]
    assert 4872 < np.mean(counts) < 4887
    assert 4850 < min(counts) and max(counts) < 4910
    for m in masks:
        assert m.shape == (128, 256) and m.dtype == bool
        assert np.count_nonzero(m.any(1)) == 64


def test_ratios_are_stratified():
    counts = np.sort(make(0).sum(1))[64:]
    edges = np.linspace(0.1, 0.5, 65)
    assert np.all(counts <= (256 * edges[1:]).astype(int))
    short = (256 * edges[:-1]).astype(int) - counts
    assert short.max() <= 12 and np.mean(short > 0) < 0.2


def test_any_crop_may_be_masked():
    masked = np.sum([make(seed, grid=(4, 4)).any(1) for seed in range(60)], 0)
    # Binomial (60, 1/2): 30 +- 3.9; six deviations.
    assert masked.min() > 6 and masked.max() < 54


def slow_block_mask(rng, side, num_patches, max_block):
    """The generator again, with Python's random and loops."""
    mask = np.zeros((side, side), bool)
    count = 0
    while count < num_patches:
        room = min(num_patches - count, max_block)
        new = 0
        for _ in range(10):
            area = rng.uniform(4, room)
            aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if h >= side or w >= side:
                continue
            y, x = rng.randint(0, side - h), rng.randint(0, side - w)
            cells = {(i, j) for i in range(y, y + h) for j in range(x, x + w)}
            fresh = [c for c in cells if not mask[c]]
            if 0 < len(fresh) <= room:
                for c in fresh:
                    mask[c] = True
                new = len(fresh)
                break
        if not new:
            break
        count += new
    return mask


def perimeter(mask):
    return np.sum(mask[1:] != mask[:-1]) + np.sum(mask[:, 1:] != mask[:, :-1])


@pytest.mark.parametrize("target", [30, 110])
def test_blocks_look_like_those_of_a_slow_twin(target):
    rng, twin = np.random.default_rng(0), random.Random(0)
    ours = [
        masking.block_mask(rng, grid=(16, 16), num_patches=target) for _ in range(500)
    ]
    theirs = [slow_block_mask(twin, 16, target, 128) for _ in range(500)]
    for statistic in (np.sum, perimeter, lambda m: m[0].sum(), lambda m: m[8, 8]):
        a, b = ([float(statistic(m)) for m in masks] for masks in (ours, theirs))
        error = np.sqrt((np.var(a) + np.var(b)) / 500) + 1e-9
        assert abs(np.mean(a) - np.mean(b)) < 4.5 * error


@pytest.mark.parametrize("size, patch, cap", [(518, 14, 666), (224, 16, 98)])
def test_large_blocks_are_capped_as_in_the_reference(monkeypatch, size, patch, cap):
    assert 0.5 * size // patch * size // patch == cap
    side, asked = size // patch, []
    add_block = masking._add_block

    def spy(rng, mask, max_new):
        asked.append(max_new)
        return add_block(rng, mask, max_new)

    monkeypatch.setattr(masking, "_add_block", spy)
    rng = np.random.default_rng(0)
    masking.block_mask(rng, grid=(side, side), num_patches=side * side)
    assert asked[0] == cap


def test_blocks_reach_every_place_alike():
    rng = np.random.default_rng(0)
    total = sum(
        masking.block_mask(rng, grid=(4, 6), num_patches=4) for _ in range(3000)
    )
    mirrored = total + total[::-1] + total[:, ::-1] + total[::-1, ::-1]
    assert total.min() > 0
    assert np.abs(total / mirrored - 0.25).max() < 0.04


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4), (3, 7), (37, 37)])
def test_odd_grids_stay_within_the_bound(grid):
    masks = make(1, num_crops=6, grid=grid)
    size = bound(6, grid[0] * grid[1])
    indices, _ = masking.mask_indices(masks, size)
    assert masks.shape == (6, grid[0] * grid[1]) and len(indices) == size


def test_no_masks():
    assert not make(0, probability=0.0).any() and bound(probability=0.0) == 0


def test_indices_and_weights():
    masks = np.zeros((3, 4), bool)
    masks[0, [1, 3]] = True
    masks[2, [0, 1, 2]] = True
    indices, weights = masking.mask_indices(masks, 7)
    assert indices.tolist() == [1, 3, 8, 9, 10, 0, 0]
    third = np.float32(1 / 3)
    assert weights.tolist() == [0.5, 0.5, third, third, third, 0, 0]
    assert (indices.dtype, weights.dtype) == (np.int32, np.float32)
    with pytest.raises(ValueError, match="5 masked patches exceed the bound 4"):
        masking.mask_indices(masks, 4)


def test_weights_sum_to_the_number_of_masked_crops():
    _, weights = masking.mask_indices(make(2), bound())
    assert abs(weights.sum() - 64) < 1e-3


def test_only_the_generator_decides():
    np.testing.assert_array_equal(make(5), make(5))
    assert not np.array_equal(make(5), make(6))
