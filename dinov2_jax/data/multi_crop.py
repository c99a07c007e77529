"""The crops of one image: two global and L local ones.

Mirrors the reference's DataAugmentationDINO (`data/augmentations.py`). With
augmentation on the host, as in the reference, the image is decoded at full size and its
crops are augmented here. Otherwise a JPEG is decoded no larger than its crops need,
crops are cut and resized here, and the device does the rest (`on_device`).
"""

import dataclasses

import numpy as np

from dinov2_jax.augment import crop_boxes, fast_resize, on_host, policies, resize
from dinov2_jax.data.decode import image_decoder


@dataclasses.dataclass(frozen=True)
class MultiCrop:
    """Function from one image to two global and L local crops.

    Attributes:
      global_crops_size: Side of a global crop, S, in pixels.
      global_crops_scale: Smallest and largest share of the image's area.
      local_crops_number: Number of local crops, L; may be 0.
      local_crops_size: Side of a local crop, s, in pixels.
      local_crops_scale: Smallest and largest share of the image's area.
      policy: Augmentation of the crops on the host; None leaves it to the device.
      gram_crops_size: Side of a second copy of the global crops, S', in pixels, only
        where the device augments; 0 cuts none.
    """

    global_crops_size: int = 224
    global_crops_scale: tuple[float, float] = (0.32, 1.0)
    local_crops_number: int = 8
    local_crops_size: int = 96
    local_crops_scale: tuple[float, float] = (0.05, 0.32)
    policy: policies.Policy | None = None
    gram_crops_size: int = 0

    def __call__(
        self, image: image_decoder.OpenedImage, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Draw all crops of an image.

        Args:
          image: The image, as opened by its source.
          rng: The only source of randomness.

        Returns:
          uint8 [2, S, S, C], uint8 [L, s, s, C] and, with `gram_crops_size`, uint8
          [2, S', S', C] of the same boxes as the first.

        Raises:
          BadImage: The image cannot be decoded.
        """
        crops = self._augmented(image, rng) if self.policy else self._cut(image, rng)
        small = self.local_crops_size
        local_crops = np.empty((0, small, small, crops[0].shape[2]), np.uint8)
        if self.local_crops_number:
            local_crops = np.stack(crops[2 : 2 + self.local_crops_number])
        larger = crops[2 + self.local_crops_number :]
        return np.stack(crops[:2]), local_crops, *([np.stack(larger)] if larger else [])

    def _augmented(self, image, rng):
        pixels, crops = image.pixels(), []
        for view, size, scale in self.views():
            box = self._box(rng, image, scale)
            crop = resize.crop_and_resize(pixels, box, size)
            crops.append(on_host.augment(rng, crop, self.policy, view))
        return crops

    def _cut(self, image, rng):
        views = self.views()
        boxes = [self._box(rng, image, scale) for _, _, scale in views]
        sizes = [size for _, size, _ in views]
        if self.gram_crops_size:
            boxes, sizes = boxes + boxes[:2], sizes + [self.gram_crops_size] * 2
        pixels = image.pixels(crop_boxes.reduction(boxes, sizes))
        height, width = pixels.shape[:2]
        if (width, height) != (image.width, image.height):
            boxes = [
                crop_boxes.reduced(
                    box, width=width, height=height, of=(image.width, image.height)
                )
                for box in boxes
            ]
        return [
            fast_resize.crop_and_resize(pixels, box, size)
            for box, size in zip(boxes, sizes)
        ]

    def views(self) -> list[tuple[int, int, tuple[float, float]]]:
        """Return (view, size in pixels, share of the area) of every crop.

        Global crops come first. A view indexes the probabilities of `policies.Policy`:
        0 and 1 are global, 2 is local.
        """
        large = (self.global_crops_size, self.global_crops_scale)
        small = (self.local_crops_size, self.local_crops_scale)
        return [(0, *large), (1, *large)] + [(2, *small)] * self.local_crops_number

    @staticmethod
    def _box(rng, image, scale):
        return crop_boxes.random_crop_box(
            rng, width=image.width, height=image.height, scale=scale
        )
