"""Quality of patch features without labels, on any folder of images."""

import argparse
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import dense_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    dense_flags.add_data(
        parser, "folder of images; photographs of many places are best", most=100
    )
    add = parser.add_argument
    add("--size", type=cli.positive, default=224, help="side of a crop, px (224)")
    add("--crops", type=cli.positive, default=4, help="pairs per image (4)")
    add(
        "--within",
        type=cli.positive_number,
        default=1.0,
        help="allowed distance, patches (1)",
    )
    add("--seed", type=cli.seed, default=0, help="seed of the crops")


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Match crops of images and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: There are no images that can be read, or the size does not fit the
        patches.
    """
    from dinov2_jax.eval import protocol_card, report
    from dinov2_jax.eval.dense import dense_quality

    model = dense_flags.model_of(backbone)
    paths = dense_quality.image_paths(args.data, most=args.max_images)
    images = dense_quality.ReadableImages(paths)
    with dense_flags.precision(backbone):
        found = dense_quality.measure(
            model,
            (image for _, image in images),
            size=args.size,
            crops=args.crops,
            within=args.within,
            seed=args.seed,
        )
    settings = {k: getattr(args, k) for k in ("size", "crops", "within", "seed")}
    card = protocol_card.make_card(
        "matching",
        backbone,
        settings,
        reference={},
        fields={
            "data": f"{len(paths) - images.left_out} images of {args.data}",
            "images left out": images.left_out,
        },
    )
    notes = [
        "no public code has this metric: compare only with numbers of this program",
        "in a long training, falling accuracy and rising cosines warn that dense "
        "features decay",
    ]
    numbers = {f"matching/{name}": value for name, value in found.items()}
    return report.Result(card, numbers, notes)
