"""Predictions of a head for any images, as PNG and JSON files.

Segmentation writes NAME.png, a palette image whose values are the classes. Depth writes
NAME.png, 16 bits, in millimetres (centimetres beyond 65 m). Classification writes the
best classes. NAME.json next to it has the classes with their shares, or the depths
in metres; predictions.json has all of them.
"""

import argparse
import json
import pathlib
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import data_flags, dense_flags

# Flags that some kinds of heads alone use.
_USED_BY = {
    "short": ("segmentation",),
    "views": ("segmentation",),
    "flip": ("segmentation", "depth", "dpt"),
    "max_depth": ("depth", "dpt"),
    "nyu_range": ("depth",),
    "class_names": ("classification", "segmentation"),
    "top": ("classification",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    add = parser.add_argument
    add("--images", required=True, nargs="+", type=data_flags.path, metavar="IMAGE")
    add(
        "--head",
        required=True,
        type=data_flags.path,
        help="a released head such as dinov2_vits14_nyu_dpt, or a head file",
    )
    add(
        "--class-names",
        type=data_flags.path,
        metavar="FILE",
        help="text file with a name on each line; default: those in the head's file",
    )
    add(
        "--top",
        type=cli.positive,
        help="classes per image that classification writes (5)",
    )
    add("--short", type=cli.positive, help="short side for segmentation, px (512)")
    add(
        "--views",
        type=cli.positive_number,
        nargs="+",
        help="scales to average for segmentation (1)",
    )
    add(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror too; of segmentation and depth",
    )
    add(
        "--max-depth",
        type=cli.positive_number,
        help="metres; default: as the head was trained",
    )
    add(
        "--nyu-range",
        choices=("10", "80"),
        help="range in metres of released linear NYUd heads (10); 80 is a mistake in "
        "the reference's hub",
    )
    add(
        "--max-images", type=cli.positive, default=1000, help="images per folder (1000)"
    )


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Write the predictions and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: No image can be read, or the head cannot be read or does not fit.
    """
    from dinov2_jax import files
    from dinov2_jax.eval import protocol_card, report
    from dinov2_jax.eval.dense import dense_quality, pairs, predictions
    from dinov2_jax.eval.heads import head_files

    model = dense_flags.model_of(backbone)
    head = head_files.load_head(
        args.head,
        width=model.module.config.embed_dim,
        depth_range=(1e-3, args.max_depth) if args.max_depth else None,
        hub_range=args.nyu_range == "80",
    )
    head_files.check_backbone(
        head, model.module.config.embed_dim, model.module.config.depth
    )
    _refuse_unused(args, head)
    given = pathlib.Path(args.class_names) if args.class_names else None
    names = head_files.class_names(head, pairs.read_lines(given) if given else ())
    paths = [
        path
        for given in args.images
        for path in dense_quality.image_paths(given, most=args.max_images)
    ]
    names_of_files = list(predictions.unique_names(paths))
    images = dense_quality.ReadableImages(paths)
    out = dense_flags.outputs(args.out)
    found, pictures = [], []
    with dense_flags.precision(backbone):
        predictor = predictions.make_predictor(
            model,
            head,
            names,
            top=args.top or 5,
            short=args.short or 512,
            ratios=tuple(args.views or [1.0]),
            flip=bool(args.flip),
        )
        for index, image in images:
            name, path = names_of_files[index]
            prediction = predictor(image)
            entry = {"image": str(path)} | prediction.summary
            text = json.dumps(entry, indent=1) + "\n"
            with files.open_new(out / f"{name}.json") as file:
                file.write(text.encode())
            if prediction.map is not None:
                with files.open_new(out / f"{name}.png") as file:
                    prediction.map.save(file, format="PNG")
            found.append(entry)
            if len(pictures) < 20:
                pictures.append(report.Picture(path.name, prediction.picture))
    with files.open_new(out / "predictions.json") as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())
    card = protocol_card.make_card(
        "predict",
        backbone,
        {},
        reference=None,
        fields={
            "head": f"{head.name} ({head.spec.kind})",
            "images": len(found),
            "images left out": images.left_out,
        },
    )
    table = report.Table(
        "Predictions",
        ("image", "prediction"),
        [(entry["image"], predictions.one_line(entry)) for entry in found],
    )
    return report.Result(card, {}, (), [table], pictures)


def _refuse_unused(args: argparse.Namespace, head: Any) -> None:
    """Raise `UserError` for a flag that a head does not use."""
    from dinov2_jax import errors

    for name, kinds in _USED_BY.items():
        if getattr(args, name) and head.spec.kind not in kinds:
            raise errors.UserError(
                f"--{name.replace('_', '-')} has no effect on heads for "
                f"{head.spec.kind}: leave it out"
            )
