"""Images that are smaller than the crops that are cut from them."""

import numpy as np

from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base

_SAMPLE = 64  # images that a run looks at when it starts


def check(source: base.Source, size: int) -> list[str]:
    """Return a line about the share of images that crops magnify, if there are any.

    Only the headers of a few evenly spaced images are read. Crops of larger images may
    be magnified too: the smallest global crop has a third of the area.

    Args:
      source: The images.
      size: Side of a global crop, in px.
    """
    smaller, count = 0, 0
    for index in np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int)):
        try:
            image = source.open(int(index))
        except image_decoder.BadImage:  # replaced and named when it is trained on
            continue
        count += 1
        smaller += min(image.width, image.height) < size
    if not smaller:
        return []
    return [
        f"{smaller / count:.0%} of the images ({smaller} of {count} looked at) have a "
        f"short side below the {size} px of a global crop and are magnified"
    ]
