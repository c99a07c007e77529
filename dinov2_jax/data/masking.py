"""Block masks for iBOT.

Mirrors the reference's data/masking.py (the generator) and the masks of data/collate.py
(how many crops are masked, and how much of each). Letters: B images per group, 2B
global crops, h x w = N patches of a crop, M the static bound of masked patches.
"""

import math

import numpy as np

MIN_BLOCK = 4  # patches; smallest target area of a block
MIN_ASPECT = 0.3  # height / width of a block is in [0.3, 1 / 0.3], log-uniform
TRIES = 10  # attempts to place a block before giving up


def block_mask(
    rng: np.random.Generator, *, grid: tuple[int, int], num_patches: int
) -> np.ndarray:
    """Mask about `num_patches` patches of one crop with overlapping rectangles.

    Args:
      rng: The only source of randomness.
      grid: (h, w), patches of a crop.
      num_patches: Number to mask. Some masks stay a few patches short because no
        fitting block was found; none exceeds it.

    Returns:
      bool [h, w].
    """
    mask = np.zeros(grid, bool)
    # The reference writes 0.5 * S // p * S // p, which floors after the first division.
    max_block = (grid[0] // 2) * grid[1]
    count = 0
    while count < num_patches:
        added = _add_block(rng, mask, min(num_patches - count, max_block))
        if added == 0:
            break
        count += added
    return mask


def _add_block(rng: np.random.Generator, mask: np.ndarray, max_new: int) -> int:
    """Add one block to `mask` in place; return the number of patches it added."""
    height, width = mask.shape
    log_aspect = math.log(MIN_ASPECT)
    for _ in range(TRIES):
        u, v = rng.random(2)
        # When max_new < MIN_BLOCK the interval is reversed, as in the reference.
        area = MIN_BLOCK + (max_new - MIN_BLOCK) * u
        aspect = math.exp(log_aspect * (1 - 2 * v))
        h = round(math.sqrt(area * aspect))
        w = round(math.sqrt(area / aspect))
        if h >= height or w >= width:
            continue
        top = rng.integers(0, height - h + 1)
        left = rng.integers(0, width - w + 1)
        block = mask[top : top + h, left : left + w]
        added = h * w - np.count_nonzero(block)
        if 0 < added <= max_new:
            block[...] = True
            return int(added)
    return 0


def _ratio_edges(
    num_crops: int, probability: float, ratio_min_max: tuple[float, float]
) -> np.ndarray:
    """Return the edges of the strata of mask ratios, [int(num_crops * p) + 1]."""
    return np.linspace(*ratio_min_max, int(num_crops * probability) + 1)


def group_masks(
    rng: np.random.Generator,
    *,
    num_crops: int,
    grid: tuple[int, int],
    probability: float,
    ratio_min_max: tuple[float, float],
) -> np.ndarray:
    """Return the masks of all global crops of a group.

    n = int(num_crops * probability) crops are masked, one for each of n equal strata
    of `ratio_min_max`. They are drawn from all crops of the group, so an image may have
    0, 1 or 2 masked crops.

    Args:
      rng: The only source of randomness.
      num_crops: Global crops of the group, 2B.
      grid: (h, w), patches of a crop.
      probability: Share of crops that are masked.
      ratio_min_max: Smallest and largest share of patches masked in such a crop.

    Returns:
      bool [2B, N], patches row-major.
    """
    num_patches = grid[0] * grid[1]
    edges = _ratio_edges(num_crops, probability, ratio_min_max)
    masks = np.zeros((num_crops, num_patches), bool)
    chosen = rng.permutation(num_crops)
    for i in range(len(edges) - 1):
        ratio = rng.uniform(edges[i], edges[i + 1])
        mask = block_mask(rng, grid=grid, num_patches=int(num_patches * ratio))
        masks[chosen[i]] = mask.reshape(-1)
    return masks


def max_masked(
    *,
    num_crops: int,
    num_patches: int,
    probability: float,
    ratio_min_max: tuple[float, float],
) -> int:
    """Return M, which the masked patches of a group never exceed.

    The reference's `upperbound`; it depends only on the configuration.
    """
    edges = _ratio_edges(num_crops, probability, ratio_min_max)
    return sum(int(num_patches * edge) for edge in edges[1:])


def mask_indices(masks: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """List the masked patches of a group with their weights, padded to `size`.

    Args:
      masks: bool [2B, N].
      size: M, from `max_masked`.

    Returns:
      indices: int32 [M], ascending positions in the flat [2B * N]; padding is 0.
      weights: float32 [M], 1 / (masked patches of that crop); padding is 0.

    Raises:
      ValueError: More than `size` patches are masked.
    """
    flat = np.flatnonzero(masks)
    if len(flat) > size:
        raise ValueError(f"{len(flat)} masked patches exceed the bound {size}")
    indices = np.zeros(size, np.int32)
    weights = np.zeros(size, np.float32)
    indices[: len(flat)] = flat
    per_crop = masks.sum(axis=1)
    weights[: len(flat)] = 1.0 / per_crop[flat // masks.shape[1]]
    return indices, weights
