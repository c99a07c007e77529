"""k-nearest-neighbour classification; mirrors the reference's `eval/knn.py`."""

import argparse
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval import reference_settings
from dinov2_jax.eval.tasks import data_flags

REFERENCE = {
    "resize": 256,
    "size": 224,
    "ks": reference_settings.KNN_KS,
    "temperature": reference_settings.KNN_TEMPERATURE,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    data_flags.add_labelled(parser)
    data_flags.add_transform(parser)
    data_flags.add_baselines(parser)
    parser.add_argument(
        "--ks",
        type=cli.positive,
        nargs="+",
        default=REFERENCE["ks"],
        help="numbers of neighbours that vote (default: 10 20 100 200)",
    )
    parser.add_argument(
        "--temperature",
        type=cli.positive_number,
        default=REFERENCE["temperature"],
        help="temperature of the votes (default: %(default)s)",
    )
    parser.add_argument(
        "--per-class",
        type=cli.positive,
        nargs="*",
        default=(),
        metavar="N",
        help="also use only N images per class, such as --per-class 1 5 10",
    )
    parser.add_argument(
        "--tries",
        type=cli.positive,
        default=1,
        help="random choices of those images; results are averaged over them",
    )


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Classify the validation images and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: The images do not fit.
    """
    import numpy as np

    from dinov2_jax.eval import feature_cache, protocol_card, report
    from dinov2_jax.eval.classification import knn, labelled, splits

    prepare = backbone.prepare(args.resize, args.size)
    sources = labelled.open_train_and_val(args)
    train, val = (
        feature_cache.extract(backbone, source, kind="cls", prepare=prepare)
        for source in sources
    )
    num_classes = len(sources[0].label_names)

    def accuracies(indices, ks):
        return knn.knn_accuracy(
            train.rows[indices],
            train.labels[indices],
            val.rows,
            val.labels,
            ks=ks,
            temperature=args.temperature,
            num_classes=num_classes,
        )

    numbers, notes = {}, []
    full = accuracies(slice(None), args.ks)
    for (k, top), value in full.items():
        numbers[f"knn/top{top}_k{k}"] = value
    if len(args.ks) > 1:
        notes.append(
            "published k-NN numbers are those of the best k, so of a k that was "
            "selected on the test data"
        )
    if max(args.ks) > len(train):
        notes.append(
            f"there are {len(train)} training images: of more neighbours, all vote"
        )
    for per_class in args.per_class:
        ks = sorted({k for k in args.ks if k <= per_class} | {per_class})
        tries = [
            accuracies(splits.few_shot(train.labels, per_class, seed), ks)
            for seed in range(args.tries)
        ]
        for k, top in tries[0]:
            mean = float(np.mean([found[k, top] for found in tries]))
            numbers[f"knn/{per_class}_per_class/top{top}_k{k}"] = mean
    card = protocol_card.make_card(
        "knn",
        backbone,
        {
            "resize": args.resize,
            "size": args.size,
            "ks": tuple(args.ks),
            "temperature": args.temperature,
        }
        | labelled.images_of_a_set(args, *sources),
        reference=REFERENCE | labelled.ALL_IMAGES,
        prepare=prepare,
        fields={
            "train": f"{len(train)} images of {args.train_path}",
            "test": f"{len(val)} images of {args.val_path}",
            "images left out": len(train.skipped) + len(val.skipped),
            "classes": num_classes,
            "few-shot tries": f"seeds 0 to {args.tries - 1}"
            if args.per_class
            else "none",
        },
    )
    tables = [
        report.Table(
            "Accuracy by number of neighbours",
            ("k", "top-1", "top-5"),
            [(k, full[k, 1], full[k, 5]) for k in dict.fromkeys(args.ks)],
        )
    ]
    return report.Result(card, numbers, notes, tables)
