"""Depth data sets: NYUd, KITTI and SUN RGB-D as people have them, and any pairs.

Shapes: H x W pixels.
"""

import functools
import pathlib
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.eval.dense import pairs
from dinov2_jax.eval.depth import depth_metrics, nyu_labeled

FORMATS = ("nyu", "kitti", "sun", "pairs")
SPLITS = ("train", "test")
_UNITS = {"nyu": 1000.0, "kitti": 256.0}  # values of a metre
_LISTS: Mapping[tuple[str, str], str] = {
    ("nyu", "train"): "nyu_train.txt",
    ("nyu", "test"): "nyu_test.txt",
    ("kitti", "train"): "kitti_eigen_train.txt",
    ("kitti", "test"): "kitti_eigen_test.txt",
    ("sun", "test"): "SUNRGBD_val_splits.txt",
}
_IMAGE_FOLDERS = ("images", "image", "rgb")
_DEPTH_FOLDERS = ("depth", "depths")


def depth_in_metres(
    values: np.ndarray, data_format: str, *, unit: float = 1.0
) -> np.ndarray:
    """Turn the values of a depth map on disk into metres.

    Args:
      values: Values on disk, [H, W]; 0 where unknown.
      data_format: One of `FORMATS`.
      unit: Values of a metre in pairs: 1000 for millimetres, 1 for metres.

    Returns:
      float32 [H, W], 0 where unknown.
    """
    if data_format == "sun":  # rotated right by three bits, millimetres
        values = (values >> 3) | ((values & 7) << 13)
        return values.astype(np.float32) / np.float32(1000.0)
    found = values.astype(np.float32) / np.float32(_UNITS.get(data_format, unit))
    return np.where(np.isfinite(found) & (found > 0), found, np.float32(0))


def guess_format(root: pathlib.Path) -> str:
    """Return which of `FORMATS` a folder has, by its lists or the file of NYUd."""
    for (data_format, _), name in _LISTS.items():
        if (root / name).is_file():
            return data_format
    return "nyu" if _has_labeled(root) else "pairs"


def depth_pairs(
    root: str | pathlib.Path,
    *,
    data_format: str | None = None,
    split: str = "test",
    unit: float | None = None,
    max_depth: float | None = None,
) -> pairs.Pairs:
    """Open a depth data set.

    Args:
      root: Its folder. NYUd: `nyu_train.txt` and `nyu_test.txt` of BTS beside the
        files that they list, or `nyu_depth_v2_labeled.mat` and `splits.mat`. KITTI:
        `kitti_eigen_*.txt`, `input/` and `gt_depth/`. SUN RGB-D:
        `SUNRGBD_val_splits.txt`. Pairs: `images/` and `depth/`, below a folder of the
        split's name or with one below them, or without a split.
      data_format: One of `FORMATS`; None guesses by the lists.
      split: "train" or "test".
      unit: Values of a metre in the files of pairs; None takes 1000 for whole numbers
        and 1 for floats.
      max_depth: Largest depth that is to be learned or judged, metres, for a check of
        the unit.

    Raises:
      UserError: Files are missing or the unit is obviously wrong.
    """
    root = pathlib.Path(root)
    data_format = data_format or guess_format(root)
    if data_format == "pairs":
        images, depths = pairs.find_folders(root, split, _IMAGE_FOLDERS, _DEPTH_FOLDERS)
        read = functools.partial(_read_pair, unit=unit, max_depth=max_depth)
        return pairs.match_folders(images, depths, read)
    if (data_format, split) not in _LISTS:
        raise errors.UserError(f"{data_format} has no split {split!r}: use 'test'")
    listed = root / _LISTS[data_format, split]
    if data_format == "nyu" and not listed.is_file() and _has_labeled(root):
        return nyu_labeled.open_split(root, split)
    lines = [line.split() for line in pairs.read_lines(listed)]
    found = [
        (_image_path(root, data_format, line[0]), _depth_path(root, data_format, line))
        for line in lines
        if len(line) > 1 and line[1] != "None"
    ]
    read = functools.partial(_read_listed, data_format=data_format)
    crop = depth_metrics.kitti_crop if data_format == "kitti" else None
    return pairs.from_list(found, read, source=listed, crop=crop)


def _has_labeled(root):
    return (root / nyu_labeled.FILE).is_file()


def _image_path(root, data_format, name):
    name = name.lstrip("/")
    return root / "input" / name if data_format == "kitti" else _below(root, name)


def _depth_path(root, data_format, line):
    name = line[1].lstrip("/")
    return root / "gt_depth" / name if data_format == "kitti" else _below(root, name)


def _below(root, name):
    """Return a listed path; lists may begin with the name of the root itself."""
    first, _, rest = name.partition("/")
    inside = root / name
    return root / rest if first == root.name and not inside.exists() else inside


def _read_listed(path: pathlib.Path, *, data_format: str) -> np.ndarray:
    return depth_in_metres(pairs.read_values(path), data_format)


def _read_pair(
    path: pathlib.Path, *, unit: float | None, max_depth: float | None
) -> np.ndarray:
    values = pairs.read_values(path)
    whole = np.issubdtype(values.dtype, np.integer)
    chosen = unit or (1000.0 if whole else 1.0)
    depth = depth_in_metres(values, "pairs", unit=chosen)
    if max_depth is not None:
        check_unit(depth, path=path, unit=chosen, max_depth=max_depth)
    return depth


def check_unit(
    depth: np.ndarray, *, path: pathlib.Path, unit: float, max_depth: float
) -> None:
    """Raise UserError if the depths are far from what their unit says.

    Args:
      depth: Depths in metres, [H, W]; 0 where unknown.
      path: Path of the file, for the message.
      unit: Values of a metre that were used.
      max_depth: Largest depth that is to be learned or judged, metres.
    """
    known = depth[depth > 0]
    if not known.size:
        return
    middle = float(np.median(known))
    if max_depth / 100 <= middle < max_depth:
        return
    values = middle * unit
    fitting = [
        name
        for name, scale in (("1", 1.0), ("100", 100.0), ("256", 256.0), ("1000", 1e3))
        if max_depth / 30 <= values / scale < max_depth
    ]
    hint = f"--depth-unit={fitting[-1]}" if fitting else "the right --depth-unit"
    raise errors.UserError(
        f"{path}: with {unit:g} units per metre the median depth is {middle:.3g} m but "
        f"depths go up to {max_depth:g} m here: pass {hint} (units per metre: 1000 "
        "for millimetres) or another --max-depth"
    )
