"""Augmentation policies: the reference's, and others for images besides photographs.

Mirrors the reference's `data/augmentations.py`. Policies are applied by
`augment.on_host` or, inside the step, `augment.on_device`. This file needs only the
standard library.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)

# Probability of blurring (global crop 1, global crop 2, local crops). The reference
# passes 1 - p where p is meant, and its released weights were trained that way.
BLUR_PROBABILITIES = {
    "reference": (0.0, 0.9, 0.5),
    "intended": (1.0, 0.1, 0.5),
    "none": (0.0, 0.0, 0.0),
}

RATIO = (3 / 4, 4 / 3)  # width / height of a crop before it is resized
BLUR_TAPS = 9
BLUR_SIGMA = (0.1, 2.0)  # px
SOLARIZE_THRESHOLD = 128
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in gray


@dataclasses.dataclass(frozen=True)
class Policy:
    """Augmentations of a crop after cropping; the defaults are the reference's.

    Attributes:
      flip_probability: Probability of a flip left to right.
      vertical_flip_probability: Probability of a flip top to bottom.
      quarter_turn_probability: Probability of a quarter turn to the left, after the
        flips; with this and both flips at 0.5, all eight orientations of a square are
        equally likely.
      jitter_probability: Probability of the four colour changes below, which are
        applied together and in random order.
      brightness: Strength b; values are scaled by a factor in [1 - b, 1 + b].
      contrast: Strength b; likewise for the distance to the crop's mean gray (to each
        channel's own mean, unless there are three channels and they are `in_color`).
      saturation: Strength b; likewise for the distance to each pixel's gray.
      hue: Strength h; the hue is shifted by [-h, h] of a full turn.
      grayscale_probability: Probability of gray in all three channels.
      solarize_probability: Probability, for global crop 2 only, of inverting values of
        at least `SOLARIZE_THRESHOLD`.
      blur_probabilities: Those of global crop 1, global crop 2 and local crops.
      in_color: Whether three channels are red, green and blue.
    """

    flip_probability: float = 0.5
    vertical_flip_probability: float = 0.0
    quarter_turn_probability: float = 0.0
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_probability: float = 0.2
    solarize_probability: float = 0.2
    blur_probabilities: tuple[float, float, float] = BLUR_PROBABILITIES["reference"]
    in_color: bool = True

    @property
    def solarize_probabilities(self) -> tuple[float, float, float]:
        """Probabilities for global crop 1, global crop 2 and local crops."""
        return 0.0, self.solarize_probability, 0.0

    def geometry(self) -> "Policy":
        """Return the policy that only flips and turns."""
        return dataclasses.replace(
            self,
            jitter_probability=0.0,
            grayscale_probability=0.0,
            solarize_probability=0.0,
            blur_probabilities=(0.0, 0.0, 0.0),
        )


_NO_COLOR = {"saturation": 0.0, "hue": 0.0, "grayscale_probability": 0.0}
_ANY_SIDE_UP = {"vertical_flip_probability": 0.5, "quarter_turn_probability": 0.5}
POLICIES = {
    "rgb": Policy(),
    "gray": Policy(**_NO_COLOR),
    # Seen from above, no side is up; inverting the values of a spectrum has no meaning.
    "multispectral": Policy(
        **_NO_COLOR, **_ANY_SIDE_UP, solarize_probability=0.0, in_color=False
    ),
    # The stain's colour is the signal: never gray, never inverted.
    "histology": Policy(
        **_ANY_SIDE_UP, grayscale_probability=0.0, solarize_probability=0.0
    ),
}
_CHANNELS = {"rgb": 3, "gray": 1, "histology": 3}
_MEANINGLESS = {
    "gray": (tuple(_NO_COLOR), "one channel has no colour"),
    "multispectral": (
        (*_NO_COLOR, "solarize_probability"),
        "bands are not red, green and blue",
    ),
    "histology": (("solarize_probability",), "an inverted stain is another stain"),
}
FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Policy)
    # Set by crops.blur and crops.policy.
    if field.name not in ("blur_probabilities", "in_color")
)


def make_policy(config: Any) -> Policy:
    """Return the policy `config.crops.policy` with the config's own changes to it."""
    crops = config.crops
    changes = {name: crops[name] for name in FIELDS if crops[name] is not None}
    return dataclasses.replace(
        POLICIES[crops.policy],
        blur_probabilities=BLUR_PROBABILITIES[crops.blur],
        **changes,
    )


def problems(flat: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of a config's policy, given its flattened fields."""
    policy, channels = flat["crops.policy"], flat["model.in_chans"]
    expected = _CHANNELS.get(policy)
    if expected and channels != expected:
        fits = [name for name in POLICIES if _CHANNELS.get(name, channels) == channels]
        yield (
            f"crops.policy = {policy!r} is for images of {expected} channels, "
            f"model.in_chans = {channels}: set --config.crops.policy={fits[0]}"
        )
    names, reason = _MEANINGLESS.get(policy, ((), ""))
    for name in FIELDS:
        value = flat[f"crops.{name}"]
        if value is None:
            continue
        if name in names and value:
            yield (
                f"crops.{name} = {value} has no meaning for crops.policy = {policy!r}, "
                f"{reason}: leave it out"
            )
        maximum = 0.5 if name == "hue" else 1.0
        if not 0 <= value <= maximum:
            yield f"crops.{name} = {value}: must be between 0 and {maximum:g}"
