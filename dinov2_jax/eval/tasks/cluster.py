"""Objects of images without labels: k-means over patch features, drawn as maps."""

import argparse
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import data_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    add = parser.add_argument
    add(
        "--images",
        required=True,
        nargs="+",
        type=data_flags.path,
        metavar="IMAGE",
        help="images or folders, clustered together",
    )
    add("--clusters", type=cli.positive, default=6, help="default: 6")
    add("--short", type=cli.positive, default=448, help="short side, px (448)")
    add("--seed", type=cli.seed, default=0, help="seed of k-means")
    add("--max-images", type=cli.positive, default=20, help="images per folder (20)")


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Write a map for each image and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: There are no images that can be read, or there are too few patches.
    """
    import numpy as np

    from dinov2_jax import files
    from dinov2_jax.eval import protocol_card, report
    from dinov2_jax.eval.dense import dense_pictures, dense_quality, predictions
    from dinov2_jax.eval.segmentation import clustering
    from dinov2_jax.eval.tasks import dense_flags

    model = dense_flags.model_of(backbone)
    paths = [
        path
        for given in args.images
        for path in dense_quality.image_paths(given, most=args.max_images)
    ]
    readable = dense_quality.ReadableImages(paths)
    indices, images = zip(*readable)
    with dense_flags.precision(backbone):
        grids = [
            dense_quality.patch_features(model, image, short=args.short)
            for image in images
        ]
    centres = clustering.cluster_centres(grids, args.clusters, seed=args.seed)
    out = dense_flags.outputs(args.out)
    rows, pictures = [], []
    names = list(predictions.unique_names(paths))
    for index, image, grid in zip(indices, images, grids):
        name, path = names[index]
        found = clustering.cluster_map(grid, centres, image.shape[:2])
        with files.open_new(out / f"{name}.png") as file:
            dense_pictures.palette_image(found, args.clusters).save(file, format="PNG")
        drawn = dense_pictures.colored_labels(found, args.clusters)
        pictures.append(report.Picture(path.name, dense_pictures.row([image, drawn])))
        shares = np.bincount(found.ravel(), minlength=args.clusters) / found.size
        rows.append((path.name, *map(float, shares)))
    settings = {"clusters": args.clusters, "short side": args.short, "seed": args.seed}
    card = protocol_card.make_card(
        "cluster",
        backbone,
        settings,
        reference=None,
        fields={
            "images": len(images),
            "images left out": readable.left_out,
            "features": "last block, unit length",
        },
    )
    columns = ("image", *(f"cluster {i}" for i in range(args.clusters)))
    table = report.Table("Shares of the clusters", columns, rows)
    return report.Result(card, {}, (), [table], pictures)
