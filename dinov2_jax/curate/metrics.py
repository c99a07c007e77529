"""The distances that clusters can be made by."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is compared by squared Euclidean distance.

    Attributes:
      unit: Whether features are taken at unit length.
      spherical: Whether centroids are too, which orders them by cosine.
      above: Name of the metric of centroids, which the next level clusters.
    """

    unit: bool
    spherical: bool
    above: str


METRICS = {
    "l2": Metric(unit=True, spherical=False, above="l2-raw"),
    "l2-raw": Metric(unit=False, spherical=False, above="l2-raw"),
    "cosine": Metric(unit=True, spherical=True, above="cosine"),
}
