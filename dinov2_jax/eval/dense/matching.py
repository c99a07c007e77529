"""Quality of patch features without labels: matching, and two early warnings.

Two overlapping crops of a photograph show the same places in different patches; good
features find them again. When dense features decay in a long training, patches grow
alike each other and the class token, before any accuracy of image labels falls.
`assignment` is the matching of the DINOv2 paper, section 7.5.

Shapes: B images, h x w patches, N patches of an image, D width.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize
from scipy.spatial import distance

Box = tuple[float, float, float, float]  # top, left, height and width


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Pairs of patches, one to one, with the least total distance.

    Attributes:
      first: Indices of patches of the first image, int [m], ascending.
      second: Indices of patches of the second image, int [m].
      distances: Euclidean distances, float64 [m].
    """

    first: np.ndarray
    second: np.ndarray
    distances: np.ndarray


def assignment(first: np.ndarray, second: np.ndarray) -> Assignment:
    """Match patches one to one so that the sum of Euclidean distances is least.

    Args:
      first: Patch features of the first image, [N, D].
      second: Patch features of the second image, [M, D].

    Returns:
      min(N, M) pairs.
    """
    costs = distance.cdist(np.float64(first), np.float64(second))
    rows, columns = optimize.linear_sum_assignment(costs)
    return Assignment(rows, columns, costs[rows, columns])


def matching_accuracy(
    first: np.ndarray,
    second: np.ndarray,
    boxes: Sequence[Box],
    *,
    within: float = 1.0,
) -> tuple[float, float, int]:
    """Measure how often the nearest patch by cosine shows the same place.

    Only patches of the first crop whose centre lies inside the second crop count.

    Args:
      first: Patch features of the first crop, [h, w, D].
      second: Patch features of the second crop, [h, w, D]; h and w may differ.
      boxes: Boxes of the two crops in the photograph, in one unit.
      within: Distance that counts as found, in patches of the second crop, by the
        larger of rows and columns.

    Returns:
      The share of patches that are found (0 if none counts), the same for random
      features, and how many patches count.
    """
    places = true_places(first.shape[:2], second.shape[:2], boxes)
    height, width = second.shape[:2]
    inside = ((places >= -0.5) & (places <= np.array([height, width]) - 0.5)).all(-1)
    if not inside.any():
        return 0.0, 0.0, 0
    similarity = (
        _normalised(first[inside]) @ _normalised(second.reshape(-1, second.shape[-1])).T
    )
    nearest = np.stack(np.divmod(similarity.argmax(axis=1), width), axis=-1)
    away = np.abs(nearest - places[inside]).max(axis=-1)
    near = 1.0  # the share of all patches that would count as found, for each place
    for axis, length in enumerate((height, width)):
        apart = np.abs(np.arange(length) - places[inside][:, axis, None])
        near *= (apart <= within).mean(axis=1)
    return float((away <= within).mean()), float(near.mean()), int(inside.sum())


def true_places(
    first_grid: tuple[int, int], second_grid: tuple[int, int], boxes: Sequence[Box]
) -> np.ndarray:
    """Return where the centres of the first crop's patches lie in the second crop.

    Args:
      first_grid: Rows and columns of patches of the first crop.
      second_grid: Rows and columns of patches of the second crop.
      boxes: Boxes of the two crops in the photograph.

    Returns:
      float64 [h, w, 2], row and column in patches; whole numbers are patch centres.
    """
    axes = []
    for axis in (0, 1):
        start, length = boxes[0][axis], boxes[0][axis + 2]
        centres = (
            start + (np.arange(first_grid[axis]) + 0.5) * length / first_grid[axis]
        )
        start, length = boxes[1][axis], boxes[1][axis + 2]
        axes.append((centres - start) * second_grid[axis] / length - 0.5)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def overlapping_boxes(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.5, 0.8),
) -> tuple[Box, Box]:
    """Draw two crops of an image that share at least a fourth of their sides.

    Args:
      size: Height and width of the image, px.
      rng: Generator of the boxes.
      scale: Range of the crops' sides as a share of the image's.
    """
    sides = rng.uniform(*scale, size=2)
    starts = rng.uniform(0.0, 1.0, size=(2, 2)) * (1.0 - sides[:, None])
    # Crops longer than half of the image always overlap; shorter ones are moved.
    apart = np.abs(starts[0] - starts[1])
    shift = np.maximum(apart - 0.75 * sides.min(), 0.0)
    starts[1] -= np.sign(starts[1] - starts[0]) * shift
    starts[1] = np.clip(starts[1], 0.0, 1.0 - sides[1])
    height, width = size
    first, second = (
        (top * height, left * width, side * height, side * width)
        for (top, left), side in zip(starts.tolist(), sides.tolist())
    )
    return first, second


def class_patch_cosine(cls: np.ndarray, patches: np.ndarray) -> float:
    """Return the mean cosine of class tokens [B, D] and their patches [B, h, w, D]."""
    patches = patches.reshape(len(patches), -1, patches.shape[-1])
    return float(np.einsum("bd,bnd->bn", _normalised(cls), _normalised(patches)).mean())


def mean_off_diagonal_cosine(patches: np.ndarray) -> float:
    """Return the mean cosine of two different patches of an image, [B, h, w, D]."""
    x = _normalised(patches.reshape(len(patches), -1, patches.shape[-1]))
    count = x.shape[1]
    # The sum over all pairs is the square of the sum.
    sums = np.square(x.sum(axis=1, dtype=np.float64)).sum(axis=-1)
    own = np.square(x.astype(np.float64)).sum(axis=(1, 2))
    return float(((sums - own) / max(count * (count - 1), 1)).mean())


def _normalised(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.maximum(norm, 1e-12)
