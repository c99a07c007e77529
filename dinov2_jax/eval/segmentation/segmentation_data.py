"""Segmentation data sets: ADE20K, VOC2012 and Cityscapes, and any folder of pairs."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors, progress_bar
from dinov2_jax.eval.dense import pairs
from dinov2_jax.eval.segmentation import mean_iou

FORMATS = ("ade20k", "voc2012", "cityscapes", "pairs")
IGNORE = 255
_IMAGE_FOLDERS = ("images", "image", "img")
_MASK_FOLDERS = ("masks", "mask", "labels", "annotations")
# Cityscapes' labelIds by trainId, from 0.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28)
_CITYSCAPES_IDS += (31, 32, 33)
NUM_CLASSES: Mapping[str, int] = {"ade20k": 150, "voc2012": 21, "cityscapes": 19}
CLASS_NAMES: Mapping[str, tuple[str, ...]] = {
    "voc2012": tuple(
        "background aeroplane bicycle bird boat bottle bus car cat chair cow "
        "diningtable dog horse motorbike person pottedplant sheep sofa train "
        "tvmonitor".split()
    ),
    "cityscapes": (
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
}


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A segmentation data set.

    Attributes:
      pairs: Its images and masks, labels in [0, K) or 255.
      num_classes: Number of classes K; None if only the masks tell.
      class_names: Names of the classes; empty if unknown.
      data_format: One of `FORMATS`.
    """

    pairs: pairs.Pairs
    num_classes: int | None
    class_names: tuple[str, ...] = ()
    data_format: str = "pairs"


def guess_format(root: pathlib.Path) -> str:
    """Return which of `FORMATS` a folder has, by its sub-folders."""
    if (root / "annotations" / "training").is_dir():
        return "ade20k"
    if (root / "SegmentationClass").is_dir():
        return "voc2012"
    if (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir():
        return "cityscapes"
    return "pairs"


def open_data(
    root: str | pathlib.Path,
    *,
    split: str,
    data_format: str | None = None,
    reduce_zero_label: bool | None = None,
) -> Segmentation:
    """Open a segmentation data set.

    Args:
      root: Its folder. ADE20K: `ADEChallengeData2016`. VOC2012: `VOCdevkit/VOC2012`.
        Cityscapes: the folder of `leftImg8bit` and `gtFine`. Pairs: `images/` and
        `masks/`, below a folder of the split's name or with one below them, or without
        a split; and, if there is one, `classes.txt` with a name on each line.
      split: "train" or "val".
      data_format: One of `FORMATS`; None guesses.
      reduce_zero_label: Whether label 0 is ignored and the others move down by one;
        None does so only for ADE20K.

    Raises:
      UserError: Files are missing.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise errors.UserError(f"there is no folder {root}: check --data")
    data_format = data_format or guess_format(root)
    reduce = data_format == "ade20k" if reduce_zero_label is None else reduce_zero_label
    found = _OPENERS[data_format](root, split, functools.partial(_read, reduce=reduce))
    names = CLASS_NAMES.get(data_format, ())
    if data_format == "pairs" and (root / "classes.txt").is_file():
        names = tuple(pairs.read_lines(root / "classes.txt"))
    count = NUM_CLASSES.get(data_format) or len(names) or None
    return Segmentation(found, count, names, data_format)


def class_count(train: Segmentation, val: Segmentation, *, given: int | None) -> int:
    """Return the number of classes K of a data set to train on.

    The masks of both parts are read where K does not follow from the format alone.

    Args:
      train: Images to train on.
      val: Images to test on.
      given: K, if the user says it.

    Raises:
      UserError: A mask has a label of K or more, or no class but 0 is labelled.
    """
    wanted = given or train.num_classes
    known, names = NUM_CLASSES.get(train.data_format), len(train.class_names)
    if given and known and given != known:
        raise errors.UserError(
            f"--num-classes={given}, and {train.data_format} has {known} classes: "
            "leave the flag out"
        )
    if given and names and given != names:
        raise errors.UserError(
            f"--num-classes={given}, and classes.txt has {names} lines: write a line "
            "for each class, or leave the flag out"
        )
    if wanted and wanted == NUM_CLASSES.get(train.data_format):
        return wanted
    largest, where = 0, train.pairs.targets[0]
    total = len(train.pairs) + len(val.pairs)
    with progress_bar.Bar(total, what="reading masks", delay=2.0) as bar:
        for part in (train.pairs, val.pairs):
            for path in part.targets:
                labels = part.read_target(path)
                found = int(labels[labels != IGNORE].max(initial=0))
                if found > largest:
                    largest, where = found, path
                bar.update()
    if not wanted and largest < 1:
        raise errors.UserError(
            f"the masks of {where.parent} hold no class but 0 and {IGNORE} (ignored): "
            "label at least two classes"
        )
    if wanted and largest >= wanted:
        raise errors.UserError(
            f"{where} has the label {largest} and there are {wanted} classes: write "
            f"{largest + 1} lines into classes.txt, or without that file pass "
            f"--num-classes={largest + 1}, or mark what is to be ignored with {IGNORE}"
        )
    return wanted or largest + 1


def _read(path: pathlib.Path, *, reduce: bool) -> np.ndarray:
    values = pairs.read_values(path)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise errors.UserError(
            f"{path} holds {values.dtype}: a mask holds whole numbers of classes"
        )
    if values.dtype != np.uint8:  # -1 marks what is ignored in some tools' files
        values = np.where(values == -1, IGNORE, values)
        if values.min() < 0 or values.max() > IGNORE:
            raise errors.UserError(
                f"{path} holds labels from {values.min()} to {values.max()}: use 0 to "
                f"{IGNORE - 1}, and {IGNORE} for what is ignored"
            )
        values = values.astype(np.uint8)
    return mean_iou.reduce_zero_label(values) if reduce else values


def _open_pairs(root, split, read):
    images, masks = pairs.find_folders(root, split, _IMAGE_FOLDERS, _MASK_FOLDERS)
    return pairs.match_folders(images, masks, read)


def _open_ade20k(root, split, read):
    folder = {"train": "training", "val": "validation"}.get(split, split)
    return pairs.match_folders(
        root / "images" / folder, root / "annotations" / folder, read
    )


def _open_voc2012(root, split, read):
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    # The larger set of other annotators has its masks in a folder of its own.
    masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
    lines = [
        (root / "JPEGImages" / f"{name}.jpg", root / masks / f"{name}.png")
        for name in pairs.read_lines(listed)
    ]
    return pairs.from_list(lines, read, source=listed)


def _open_cityscapes(root, split, read):
    images, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    ready = next(masks.rglob("*_gtFine_labelTrainIds.png"), None) is not None
    ending = "_gtFine_labelTrainIds" if ready else "_gtFine_labelIds"
    return pairs.match_folders(
        images,
        masks,
        read if ready else _read_label_ids,
        image_ending="_leftImg8bit",
        target_ending=ending,
    )


def _read_label_ids(path: pathlib.Path) -> np.ndarray:
    table = np.full(256, IGNORE, np.uint8)
    table[list(_CITYSCAPES_IDS)] = np.arange(len(_CITYSCAPES_IDS))
    return table[pairs.read_values(path).astype(np.uint8)]


_OPENERS = {
    "pairs": _open_pairs,
    "ade20k": _open_ade20k,
    "voc2012": _open_voc2012,
    "cityscapes": _open_cityscapes,
}
