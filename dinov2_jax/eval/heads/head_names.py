"""Names, keys and shapes of the released heads, by rule.

Mirrors the files at dl.fbaipublicfiles.com/dinov2: linear classifiers, segmentation
heads for ADE20K and VOC2012, depth heads for NYUd and KITTI. There are 56 of them,
without the Mask2Former of ViT-g.
"""

import dataclasses
import difflib
from collections.abc import Mapping

from dinov2_jax import errors
from dinov2_jax.eval.depth import depth_head, dpt_head

BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"
PREFIX = "decode_head."
WIDTHS = {"vits14": 384, "vitb14": 768, "vitl14": 1024, "vitg14": 1536}
_CLASSES = {"imagenet": 1000, "ade20k": 150, "voc2012": 21}
_RANGES = {"nyu": (1e-3, 10.0), "kitti": (1e-3, 80.0)}  # metres
# Ending of a name after the backbone's, by kind, data set and number of blocks.
_ENDINGS = {
    "linear": ("classification", "imagenet", 1),
    "linear4": ("classification", "imagenet", 4),
    **{f"{d}_linear": ("segmentation", d, 1) for d in ("ade20k", "voc2012")},
    **{f"{d}_ms": ("segmentation", d, 4) for d in ("ade20k", "voc2012")},
    **{f"{d}_linear": ("depth", d, 1) for d in ("nyu", "kitti")},
    **{f"{d}_linear4": ("depth", d, 4) for d in ("nyu", "kitti")},
    **{f"{d}_dpt": ("dpt", d, 4) for d in ("nyu", "kitti")},
}
KINDS = ("classification", "segmentation", "depth", "dpt")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a head is for.

    Attributes:
      kind: One of `KINDS`.
      width: Width D of its backbone.
      layers: Number of blocks whose features it takes.
      num_classes: Number of classes; 0 for depth.
      depth_range: Least and largest depth, metres; None for classes.
      dataset: Name of the data that it was trained on, as a note.
    """

    kind: str
    width: int
    layers: int
    num_classes: int = 0
    depth_range: tuple[float, float] | None = None
    dataset: str = ""


def names() -> tuple[str, ...]:
    """Return the names of all released heads, as `load_head` takes them."""
    found = []
    for arch in WIDTHS:
        for ending, (kind, _, _) in _ENDINGS.items():
            registers = ("", "_reg4") if kind == "classification" else ("",)
            found += [f"dinov2_{arch}{r}_{ending}" for r in registers]
    return tuple(found)


def spec(name: str) -> Spec:
    """Return what a released head is for.

    Args:
      name: Name such as "dinov2_vits14_nyu_dpt", with or without "_head".

    Raises:
      UserError: There is no such head.
    """
    short = name.removesuffix(".pth").removesuffix("_head")
    if short not in names():
        close = difflib.get_close_matches(short, names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise errors.UserError(
            f"there is no file {name}, and no released head of that name: {hint}names "
            "are dinov2_{vits14,vitb14,vitl14,vitg14} and one of "
            f"_{', _'.join(_ENDINGS)}"
        )
    arch, _, ending = short.removeprefix("dinov2_").partition("_")
    kind, dataset, layers = _ENDINGS[ending.removeprefix("reg4_")]
    return Spec(
        kind=kind,
        width=WIDTHS[arch],
        layers=layers,
        num_classes=_CLASSES.get(dataset, 0),
        depth_range=_RANGES.get(dataset),
        dataset=dataset,
    )


def url(name: str) -> str:
    """Return the official address of a released head."""
    short = name.removesuffix(".pth").removesuffix("_head")
    backbone = "_".join(short.split("_")[:2])
    return f"{BASE_URL}/{backbone}/{short}_head.pth"


def shapes(head: Spec, channels: int = dpt_head.CHANNELS) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter, without the prefix of files.

    Args:
      head: What the head is for.
      channels: Channels of the fusion of a DPT head.
    """
    classes, width = head.num_classes, head.width * head.layers
    match head.kind:
        case "classification":
            width += head.width
            return {"weight": (classes, width), "bias": (classes,)}
        case "segmentation":
            norm = ("weight", "bias", "running_mean", "running_var")
            return {
                "conv_seg.weight": (classes, width, 1, 1),
                "conv_seg.bias": (classes,),
                **{f"bn.{name}": (width,) for name in norm},
                "bn.num_batches_tracked": (),
            }
        case "depth":
            bins = depth_head.NUM_BINS
            return {
                "conv_depth.weight": (bins, 2 * width, 1, 1),
                "conv_depth.bias": (bins,),
            }
    return dpt_head.shapes(head.width, channels)


def guess(found: Mapping[str, tuple[int, ...]], width: int | None) -> Spec | None:
    """Return what a head is for by the shapes of its parameters, or None.

    Args:
      found: Shapes by name, without the prefix of files.
      width: Width of the backbone, tried first; then those of the released ones.
    """
    if "conv_depth.head.0.weight" in found:
        (own,) = found.get("reassemble_blocks.readout_projects.0.0.bias", (0,))
        return Spec("dpt", own, 4) if own else None
    for kind, key, factors in (
        ("segmentation", "conv_seg.weight", {1: 1, 4: 4}),
        ("depth", "conv_depth.weight", {2: 1, 8: 4}),
        ("classification", "weight", {2: 1, 5: 4}),
    ):
        if len(found.get(key, ())) < 2:
            continue
        rows, columns = found[key][:2]
        fitting = [
            (own, layers)
            for own in (width, *WIDTHS.values())
            for factor, layers in factors.items()
            if own and columns == factor * own
        ]
        # Of several widths, only that of the backbone can be the right one.
        if not fitting or (len(fitting) > 1 and fitting[0][0] != width):
            return None
        classes = 0 if kind == "depth" else rows
        return Spec(kind, *fitting[0], num_classes=classes)
    return None
