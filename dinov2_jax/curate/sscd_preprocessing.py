"""The two ways in which images are resized for SSCD, as its authors recommend."""

import dataclasses

import numpy as np
from PIL import Image

RESIZES = {"squeeze": 320, "short-side": 288}  # px


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Function from an image to the pixels that the network sees, bilinear.

    Attributes:
      resize: "squeeze" for a square whatever the shape, or "short-side", which keeps
        the shape.
      size: Side of the square, or short side, px.
    """

    resize: str
    size: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize uint8 [H, W, 3]."""
        height, width = image.shape[:2]
        size = self.size, self.size
        if self.resize == "short-side":  # as torchvision: truncate the long side
            short = min(height, width)
            size = int(self.size * width / short), int(self.size * height / short)
        if size == (width, height):
            return image
        return np.asarray(
            Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        )
