"""Metrics of depth maps with the crops and ranges of NYUd, KITTI and SUN RGB-D.

Mirrors the Monocular-Depth-Estimation-Toolbox, which the paper's numbers come from:
every metric, the RMSE too, is computed for each image and then averaged over images.

Shapes: H x W pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dinov2_jax import errors

ORDER = (
    "a1",
    "a2",
    "a3",
    "abs_rel",
    "rmse",
    "log_10",
    "rmse_log",
    "silog",
    "sq_rel",
)
RMSE = ("mean_of_images", "pooled")
_KITTI_CROP = (352, 1216)  # px


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which pixels count.

    Attributes:
      min_depth: Depth that the truth must exceed, metres.
      max_depth: Depth that the truth must stay below, metres.
      box: Top, bottom, left and right of the pixels that count, px; None for all.
      garg: Whether the box is that of Garg et al., relative to the size of the map.
      clip: Depth at which truth and prediction are clipped first, metres; None clips
        nothing.
    """

    min_depth: float = 1e-3
    max_depth: float = 10.0
    box: tuple[int, int, int, int] | None = None
    garg: bool = False
    clip: float | None = None

    def crop(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return top, bottom, left and right of the pixels that count."""
        height, width = size
        if self.garg:
            rows = int(0.40810811 * height), int(0.99189189 * height)
            return *rows, int(0.03594771 * width), int(0.96405229 * width)
        return self.box or (0, height, 0, width)


PROTOCOLS: Mapping[str, Protocol] = {
    "nyu": Protocol(box=(45, 471, 41, 601)),
    "kitti": Protocol(max_depth=80.0, garg=True),
    "sun": Protocol(box=(45, 471, 41, 601), clip=8.0),
    "pairs": Protocol(),
}


def kitti_crop(x: np.ndarray) -> np.ndarray:
    """Cut the 352 x 1216 px at the bottom centre out of [H, W, ...]."""
    height, width = _KITTI_CROP
    if x.shape[0] < height or x.shape[1] < width:
        raise errors.UserError(
            f"an image of KITTI is {x.shape[0]}x{x.shape[1]} px, smaller than its crop "
            f"of {height}x{width}: use the raw images"
        )
    top, left = x.shape[0] - height, int((x.shape[1] - width) / 2)
    return x[top : top + height, left : left + width]


def valid_pixels(truth: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Return which pixels of a true depth map count, bool [H, W].

    Args:
      truth: True depth in metres, [H, W]; 0 where unknown.
      protocol: Which pixels count.
    """
    truth = _clipped(truth, protocol)
    top, bottom, left, right = protocol.crop(truth.shape)
    inside = np.zeros(truth.shape, bool)
    inside[top:bottom, left:right] = True
    return inside & (truth > protocol.min_depth) & (truth < protocol.max_depth)


def _clipped(depth: np.ndarray, protocol: Protocol) -> np.ndarray:
    return depth if protocol.clip is None else np.minimum(depth, protocol.clip)


def image_metrics(
    prediction: np.ndarray, truth: np.ndarray, protocol: Protocol
) -> np.ndarray:
    """Compute the metrics of one image.

    Args:
      prediction: Depth in metres, [H, W].
      truth: True depth in metres, [H, W]; 0 where unknown.
      protocol: Which pixels count.

    Returns:
      float64 [9] in the order of `ORDER`; NaN if no pixel counts.

    Raises:
      UserError: The sizes differ.
    """
    if prediction.shape != truth.shape:
        raise errors.UserError(
            f"a depth map is {list(prediction.shape)} and its truth is "
            f"{list(truth.shape)}: predict at the size of the truth"
        )
    valid = valid_pixels(truth, protocol)
    if not valid.any():
        return np.full(len(ORDER), np.nan)
    p, t = (
        _clipped(x[valid], protocol).astype(np.float64) for x in (prediction, truth)
    )
    ratio = np.maximum(p / t, t / p)
    logs = np.log(p) - np.log(t)
    spread = np.mean(logs**2) - np.mean(logs) ** 2
    found = {
        "a1": np.mean(ratio < 1.25),
        "a2": np.mean(ratio < 1.25**2),
        "a3": np.mean(ratio < 1.25**3),
        "abs_rel": np.mean(np.abs(t - p) / t),
        "rmse": np.sqrt(np.mean((t - p) ** 2)),
        "log_10": np.mean(np.abs(np.log10(t) - np.log10(p))),
        "rmse_log": np.sqrt(np.mean(logs**2)),
        "silog": 100.0 * np.sqrt(max(spread, 0.0)),
        "sq_rel": np.mean((t - p) ** 2 / t),
    }
    return np.array([found[name] for name in ORDER])


def mean_metrics(
    images: Sequence[np.ndarray],
    counts: Sequence[int] = (),
    *,
    rmse: str = "mean_of_images",
) -> dict[str, float]:
    """Average the metrics of images, without those that had no pixel.

    Args:
      images: Metrics of each image, [9].
      counts: Number of pixels that counted in each image, for a pooled RMSE.
      rmse: "mean_of_images", as published, or "pooled" over all pixels.

    Returns:
      {name: mean}, in the order of `ORDER`.
    """
    table = np.stack(images)
    there = ~np.isnan(table[:, 0])
    if not there.any():
        raise errors.UserError(
            "no pixel of any image has a true depth within the range: check the unit "
            "of the depth maps"
        )
    means = dict(zip(ORDER, table[there].mean(axis=0).tolist()))
    if rmse == "pooled":
        squares = table[there, ORDER.index("rmse")] ** 2
        weights = np.asarray(counts)[there]
        means["rmse"] = float(np.sqrt(np.average(squares, weights=weights)))
    return means
