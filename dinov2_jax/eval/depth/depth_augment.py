"""Augmentation of images with depth maps, as the reference trains depth heads.

Mirrors the pipelines of the released configs for NYUd and KITTI.

Shapes: H x W pixels.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.eval.dense import dense_resize


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation.

    Attributes:
      crop: Height and width of the random crop, px.
      box: Rows and columns that are kept first, to cut off the frames of NYUd's
        images; None keeps all.
      degrees: Largest angle of the rotation.
      brightness: Range of the factor of all channels.
    """

    crop: tuple[int, int]
    box: tuple[slice, slice] | None = None
    degrees: float = 2.5
    brightness: tuple[float, float] = (0.9, 1.1)

    def __call__(
        self,
        image: np.ndarray,
        depth: np.ndarray,
        rng: np.random.Generator,
        normalize: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image and its depth.

        Args:
          image: uint8 [H, W, 3].
          depth: Depth in metres, float32 [H, W]; 0 where unknown.
          rng: Generator of all that is random.
          normalize: Function that normalises pixels in [0, 255].

        Returns:
          float32 [*crop, 3], normalised, and float32 [*crop].

        Raises:
          UserError: The image is smaller than the crop.
        """
        if self.box is not None:
            image, depth = image[self.box], depth[self.box]
        if rng.random() < 0.5:
            angle = rng.uniform(-self.degrees, self.degrees)
            image = dense_resize.rotate(
                np.ascontiguousarray(image), angle, nearest=False
            )
            depth = dense_resize.rotate(
                np.ascontiguousarray(depth), angle, nearest=True
            )
        if rng.random() < 0.5:
            image, depth = image[:, ::-1], depth[:, ::-1]
        height, width = self.crop
        if depth.shape[0] < height or depth.shape[1] < width:
            raise errors.UserError(
                f"an image is {depth.shape[0]}x{depth.shape[1]} px, smaller than the "
                f"crop of {height}x{width}: pass a smaller --crop"
            )
        top, left = (
            int(rng.integers(n - m + 1)) for n, m in zip(depth.shape, self.crop)
        )
        box = (slice(top, top + height), slice(left, left + width))
        image, depth = image[box].astype(np.float32), depth[box]
        if rng.random() < 0.5:
            image = np.power(image, np.float32(rng.uniform(0.9, 1.1)))
            image *= np.float32(rng.uniform(*self.brightness))
            image *= rng.uniform(0.9, 1.1, 3).astype(np.float32)
            image = np.clip(image, 0, 255)
        return normalize(image), np.ascontiguousarray(depth)


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "nyu": Augmentation(
        crop=(416, 544),
        box=(slice(45, 472), slice(43, 608)),
        brightness=(0.75, 1.25),
    ),
    "kitti": Augmentation(crop=(352, 704)),
    "pairs": Augmentation(crop=(416, 544)),
}
