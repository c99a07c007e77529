"""Monocular depth with heads on frozen features.

Mirrors the reference's heads and the released configs; the training code is not public.
The published numbers are of the checkpoint with the best abs_rel on the test images,
which --select=abs_rel chooses; by default the last step is evaluated.
"""

import argparse
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import data_flags, dense_flags, depth_training

REFERENCE = {
    "steps": 38_400,
    "training batch": 16,
    "lr": 1e-4,
    "gradient loss": "none",
    "head of": "abs_rel",
}
_PICTURES = 8
_SELECTED = "the test images: the released heads are those with their best abs_rel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    dense_flags.add_data(
        parser,
        "NYUd (with nyu_test.txt, or nyu_depth_v2_labeled.mat and splits.mat), KITTI "
        "(with kitti_eigen_test.txt), SUN RGB-D (with SUNRGBD_val_splits.txt), or a "
        "folder with train/images, train/depth, test/images and test/depth",
        formats=("nyu", "kitti", "sun", "pairs"),
    )
    add = parser.add_argument
    add("--train-data", type=data_flags.path, metavar="DIR", help="default: --data")
    dense_flags.add_head(parser, "nyu_linear4")
    add(
        "--head-kind",
        choices=("lin1", "lin4", "dpt"),
        default="lin4",
        help="kind of head to train (default: lin4)",
    )
    add(
        "--max-depth",
        type=cli.positive_number,
        help="of pixels, m; default: 80 of KITTI, else 10",
    )
    add(
        "--depth-unit",
        type=cli.positive_number,
        help="units per metre in the files of pairs: 1000 for millimetres; default: "
        "1000 for whole numbers, 1 for floats",
    )
    add(
        "--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror too"
    )
    add(
        "--nyu-range",
        choices=("10", "80"),
        default="10",
        help="range in metres of released linear NYUd heads; 80 is a mistake in the "
        "reference's hub",
    )
    add(
        "--sun-resize",
        choices=("keep", "portrait"),
        default="keep",
        help="portrait stretches SUN RGB-D images to 480x640 px, as its config does",
    )
    add(
        "--rmse",
        choices=("mean_of_images", "pooled"),
        default="mean_of_images",
        help="published numbers are means of images",
    )
    depth_training.add_arguments(parser)


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Train a head if none is given, evaluate it and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: The data or the head do not fit.
    """
    import dataclasses
    import pathlib

    from dinov2_jax import errors
    from dinov2_jax.eval.depth import depth_data, depth_metrics, depth_model
    from dinov2_jax.eval.heads import head_files

    model = dense_flags.model_of(backbone)
    data_format = args.format or depth_data.guess_format(pathlib.Path(args.data))
    max_depth = args.max_depth or (80.0 if data_format == "kitti" else 10.0)
    every = depth_data.depth_pairs(
        args.data,
        data_format=data_format,
        split="test",
        unit=args.depth_unit,
        max_depth=max_depth,
    )
    test = every.spaced(args.max_images)
    protocol = depth_metrics.PROTOCOLS[data_format]
    if args.max_depth:
        protocol = dataclasses.replace(protocol, max_depth=max_depth)
    out = dense_flags.outputs(args.out)
    losses, trained = [], {}
    with dense_flags.precision(backbone):
        if args.head:
            head = head_files.load_head(
                args.head,
                width=model.module.config.embed_dim,
                unknown_range=(1e-3, max_depth),
                hub_range=args.nyu_range == "80",
            )
            if head.spec.depth_range is None:
                raise errors.UserError(
                    f"the head {head.name} is for {head.spec.kind}: pass one for depth"
                )
        else:
            head, losses, trained = depth_training.train(
                args, backbone, model, max_depth, test, protocol
            )
            head_files.save_head(out / "head.pth", head)
        estimator = depth_model.DepthEstimator(
            model, head, flip=args.flip, sun_resize=args.sun_resize
        )
        rows = _evaluated(args, backbone, estimator, head, test, protocol, out)
        pictures = _pictures(estimator, test)
    means = depth_metrics.mean_metrics(
        [row[:-1] for row in rows], [row[-1] for row in rows], rmse=args.rmse
    )
    tables = [dense_flags.losses_table(losses)] if losses else []
    return _result(
        args,
        backbone,
        head,
        (data_format, protocol),
        (every, test),
        means,
        tables,
        pictures,
        trained,
    )


def _evaluated(args, backbone, estimator, head, test, protocol, out):
    import numpy as np

    from dinov2_jax.eval import partial_rows
    from dinov2_jax.eval.depth import depth_model

    def rows(start):
        for scores in depth_model.evaluate(
            estimator, test.part(slice(start, None)), protocol
        ):
            yield [*scores.metrics.tolist(), scores.count]

    key = dense_flags.fingerprint(
        backbone.identity,
        dense_flags.digest(head.params),
        test.fingerprint,
        vars(protocol),
        head.spec.depth_range,
        args.flip,
        args.sun_resize,
    )
    found = partial_rows.collect(out / "images.jsonl", key, rows, len(test))
    return [np.array(row) for row in found]


def _pictures(estimator, test):
    import numpy as np

    from dinov2_jax.eval import report
    from dinov2_jax.eval.dense import dense_pictures

    pictures = []
    for index in range(min(_PICTURES, len(test))):
        image, truth = test.sample(index)
        prediction = estimator(image)
        known = truth[truth > 0] if (truth > 0).any() else prediction
        low, high = np.percentile(known, (2, 98))
        shown = [
            dense_pictures.colored_depth(x, float(low), float(high))
            for x in (prediction, truth)
        ]
        caption = (
            f"{test.images[index].name}: image, prediction, truth; "
            f"{low:.2f} m bright to {high:.2f} m dark"
        )
        pictures.append(report.Picture(caption, dense_pictures.row([image, *shown])))
    return pictures


def _result(args, backbone, head, data, sets, means, tables, pictures, trained):
    from dinov2_jax.eval import protocol_card, report
    from dinov2_jax.eval.depth import depth_metrics

    (data_format, protocol), (every, test) = data, sets
    used = {"mirrored": args.flip, "rmse": args.rmse, "sun resize": args.sun_resize}
    reference = {"mirrored": True, "rmse": "mean_of_images", "sun resize": "portrait"}
    used["test images"] = len(test) if len(test) < len(every) else "all"
    reference["test images"] = "all"
    used |= {"data": data_format, "pixels up to": f"{protocol.max_depth:g} m"}
    published = depth_metrics.PROTOCOLS[data_format]
    reference |= {
        "data": data_format if data_format != "pairs" else "nyu, kitti or sun",
        "pixels up to": f"{published.max_depth:g} m",
    }
    if data_format != "sun":
        del used["sun resize"], reference["sun resize"]
    selected = _SELECTED if head.spec.dataset else trained.get("selected")
    fields = {
        "head": f"{head.name} ({head.spec.kind}, {head.spec.layers} blocks)",
        "depth": "{:g} to {:g} m".format(*head.spec.depth_range),
        "test": f"{len(test)} images of {args.data}",
        "transform": "native size, zeros around it to whole patches",
        "selected on": selected or dense_flags.NOT_SELECTED[bool(args.head)],
    }
    if trained:
        used |= {
            "steps": args.steps,
            "training batch": args.train_batch_size,
            "lr": args.lr,
            "gradient loss": args.gradient_loss,
            "head of": args.select,
            "crop": "{}x{} px".format(*trained["crop"]),
            "warm-up steps": trained["warmup_steps"],
        }
        reference |= REFERENCE | {
            "crop": "{}x{} px".format(*trained["reference crop"]),
            "warm-up steps": args.steps // 3,
        }
        fields |= {"train": trained["train"], "seed": args.seed}
    card = protocol_card.make_card(
        "depth", backbone, used, reference=reference, fields=fields
    )
    numbers = {f"depth/{name}": value for name, value in means.items()}
    notes = [f"selected on {selected}"] if selected else []
    notes += dense_flags.notes(trained.get("data"), test, every)
    if head.spec.depth_range[1] == 80.0 and head.spec.dataset == "nyu":
        notes.append(
            "the head predicts up to 80 m: depth of rooms is about 8x too deep"
        )
    return report.Result(card, numbers, notes, tables, pictures)
