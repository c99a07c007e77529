"""The crops of one image: two global and L local ones.

Mirrors the reference's DataAugmentationDINO (`data/augmentations.py`). On the host as
the reference does it, decoded whole and augmented here; or split: a JPEG is decoded no
larger than its crops need, crops are cut and resized, and what follows happens on the
device (`on_device`).
"""

import dataclasses

import numpy as np

from dinov2_jax.augment import crop_boxes, fast_resize, on_host, policies, resize
from dinov2_jax.data.decode import image_decoder


@dataclasses.dataclass(frozen=True)
class MultiCrop:
    """Turns one image into two global and L local crops.

    Attributes:
      global_crops_size: S, in pixels.
      global_crops_scale: least and greatest share of the image's area.
      local_crops_number: L; may be 0.
      local_crops_size: s, in pixels.
      local_crops_scale: least and greatest share of the image's area.
      policy: what happens to the crops here; None leaves it to the device.
    """

    global_crops_size: int = 224
    global_crops_scale: tuple[float, float] = (0.32, 1.0)
    local_crops_number: int = 8
    local_crops_size: int = 96
    local_crops_scale: tuple[float, float] = (0.05, 0.32)
    policy: policies.Policy | None = None

    def __call__(
        self, image: image_decoder.OpenedImage, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws all crops of an image.

        Args:
          image: as its source opens it.
          rng: the only source of randomness.

        Returns:
          uint8 [2, S, S, C] and uint8 [L, s, s, C].

        Raises:
          BadImage: it cannot be decoded.
        """
        crops = self._augmented(image, rng) if self.policy else self._cut(image, rng)
        small = self.local_crops_size
        local_crops = np.empty((0, small, small, crops[0].shape[2]), np.uint8)
        if self.local_crops_number:
            local_crops = np.stack(crops[2:])
        return np.stack(crops[:2]), local_crops

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
        pixels = image.pixels(crop_boxes.reduction(boxes, [v[1] for v in views]))
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
            for box, (_, size, _) in zip(boxes, views)
        ]

    def views(self) -> list[tuple[int, int, tuple[float, float]]]:
        """(view, size in pixels, share of the area) of every crop, global ones first.

        A view is what `policies.Policy` counts: 0 and 1 are global, 2 is local.
        """
        large = (self.global_crops_size, self.global_crops_scale)
        small = (self.local_crops_size, self.local_crops_scale)
        return [(0, *large), (1, *large)] + [(2, *small)] * self.local_crops_number

    @staticmethod
    def _box(rng, image, scale):
        return crop_boxes.random_crop_box(
            rng, width=image.width, height=image.height, scale=scale
        )
