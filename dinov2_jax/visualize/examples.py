"""Example photographs of pages that show a model, from the wheels of other packages."""

import dataclasses

import numpy as np

from dinov2_jax.data.sources import photos


@dataclasses.dataclass(frozen=True)
class Example:
    """A photograph.

    Attributes:
      name: Its name.
      pixels: uint8 [H, W, 3].
      credit: Its author and licence.
    """

    name: str
    pixels: np.ndarray
    credit: str


def load() -> list[Example]:
    """Return the photographs; each may be published.

    Raises:
      UserError: The packages that hold them are not installed.
    """
    chelsea, coffee = photos.load_unseen()
    known = dict(zip(photos.photograph_names(), photos.load_photographs()))
    return [
        Example("chelsea", chelsea, "Stéfan van der Walt, CC0"),
        Example("astronaut", known["astronaut"], "NASA, public domain"),
        Example("coffee", coffee, "Rachel Michetti, CC0"),
        Example("rocket", known["rocket"], "SpaceX, CC0"),
    ]
