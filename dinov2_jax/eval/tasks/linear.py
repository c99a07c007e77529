"""Linear probes; mirrors the reference's `eval/linear.py`."""

import argparse
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval import reference_settings
from dinov2_jax.eval.tasks import data_flags

REFERENCE = {
    "resize": 256,
    "size": 224,
    "train batch": reference_settings.PROBE_BATCH,
    "steps": reference_settings.PROBE_STEPS,
    "grid": "code",
    "blocks": reference_settings.PROBE_BLOCKS,
    "augmentation": "crops",
    "select on": "test",
}
PAPER = {"train batch": reference_settings.PAPER_PROBE_BATCH, "grid": "paper"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    data_flags.add_labelled(parser)
    data_flags.add_transform(parser)
    data_flags.add_baselines(parser)
    add = parser.add_argument
    add(
        "--grid",
        choices=tuple(reference_settings.PROBE_GRIDS),
        default="code",
        help="13 learning rates: the code's, times batch / 256, or the paper's",
    )
    add(
        "--train-batch-size",
        type=cli.positive,
        default=REFERENCE["train batch"],
        help="images per step, over all devices (default: %(default)s; the published "
        "numbers used 1024)",
    )
    add(
        "--steps",
        type=cli.positive,
        default=REFERENCE["steps"],
        help="(default: %(default)s)",
    )
    add(
        "--every",
        type=cli.positive,
        default=1250,
        help="steps between saves and measurements (default: %(default)s)",
    )
    add(
        "--blocks",
        type=cli.positive,
        nargs="+",
        default=REFERENCE["blocks"],
        help="numbers of last blocks whose class tokens are used (default: 1 4)",
    )
    data_flags.add_augmentation(parser)
    add(
        "--select-on",
        choices=("test", "train"),
        default="test",
        help="where the best of the classifiers is chosen: on --val-path itself, as "
        "the reference does, or on a held-out tenth of --train-path",
    )
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of weights, order, crops (0)",
    )
    add(
        "--test-path",
        type=data_flags.path,
        nargs="*",
        default=(),
        metavar="PATH",
        help="more test sets, such as ImageNet-A, -R, -V2 and Sketch; their classes "
        "may be a subset of the training set's",
    )
    add(
        "--real",
        type=data_flags.path,
        metavar="FILE",
        help="real.json of ImageNet-ReaL, for --val-path",
    )
    add(
        "--imagenet-c",
        type=data_flags.path,
        metavar="PATH",
        help="ImageNet-C, with one folder per corruption",
    )


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Train all classifiers, choose one and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: The images, the model and the flags do not fit.
    """
    import numpy as np

    from dinov2_jax import errors, files
    from dinov2_jax.eval import feature_cache, protocol_card, report
    from dinov2_jax.eval.classification import (
        chosen_probe,
        labelled,
        linear_probe,
        probe_evaluation,
        test_sets,
    )

    prepare = backbone.prepare(args.resize, args.size)
    depth = backbone.model.module.config.depth
    if max(args.blocks) > depth:
        raise errors.UserError(
            f"--blocks has {max(args.blocks)} and the model {depth} blocks: use "
            f"--blocks {' '.join(map(str, sorted({1, depth})))}"
        )
    sources = labelled.open_train_and_val(args)
    classes = list(sources[0].label_names)
    train_source, select_source = _parts(args, *sources)
    real = None
    if args.real:
        real = test_sets.read_real(args.real, sources[1], len(classes))
    more = test_sets.open_sets(args.test_path, classes, max_images=args.max_images)
    corrupted = None
    if args.imagenet_c:
        corrupted = test_sets.open_imagenet_c(
            args.imagenet_c, classes, max_images=args.max_images
        )
    left_out = {}

    def extract(source):
        kind = f"last{max(args.blocks)}"
        found = feature_cache.extract(backbone, source, kind=kind, prepare=prepare)
        left_out[source.fingerprint] = len(found.skipped)
        return found

    settings = {
        "resize": args.resize,
        "size": args.size,
        "train batch": args.train_batch_size,
        "steps": args.steps,
        "grid": args.grid,
        "blocks": tuple(args.blocks),
        "augmentation": args.augmentation,
        "select on": args.select_on,
    }
    probe = linear_probe.Probe(
        linear_probe.learning_rates(args.grid, args.train_batch_size),
        len(classes),
        args.steps,
        tuple(args.blocks),
    )
    select, history = extract(select_source), []

    def measure(done, state):
        values = probe_evaluation.accuracies(probe, state, select)
        best = linear_probe.best(values)
        history.append((done, float(values[best]), probe.heads[best].name))
        print(f"step {done:,}: best top-1 {values[best]:.4f}, {history[-1][2]}")

    state = _train(
        args, backbone, prepare, probe, settings, train_source, extract, measure
    )
    values = probe_evaluation.accuracies(probe, state, select)
    chosen = chosen_probe.choose(probe, state, linear_probe.best(values))
    with files.open_new(args.out / "best_head.npz") as file:
        np.savez(file, **chosen.arrays(), classes=classes)
    numbers, tables = _numbers(chosen, sources[1], real, more, corrupted, extract)
    tables += [
        report.Table(
            f"All classifiers, top-1 on {args.select_on}",
            ("class tokens", "mean patch", "learning rate", "top-1"),
            [
                (h.blocks, h.average_pool, f"{h.lr:g}", float(value))
                for h, value in zip(probe.heads, values)
            ],
        ),
        report.Table("Course", ("step", "best top-1", "classifier"), history),
    ]
    notes = []
    if args.select_on == "test":
        notes.append(
            f"the best of {len(values)} classifiers was selected on the test data: "
            "linear/top1 is their maximum there, as published numbers are; "
            "--select-on=train avoids it"
        )
    card = protocol_card.make_card(
        "linear",
        backbone,
        settings | labelled.images_of_a_set(args, *sources),
        reference=REFERENCE | labelled.ALL_IMAGES,
        paper=PAPER,
        prepare=prepare,
        fields={
            "classifiers": f"{len(values)}, learning rates {probe.rates[0]:g} to "
            f"{probe.rates[-1]:g}, SGD momentum {linear_probe.MOMENTUM}, cosine to 0",
            "selected": chosen.head.name,
            "selected on": f"{len(select)} images of "
            + (args.val_path if args.select_on == "test" else "train, held out"),
            "train": f"{len(train_source)} images of {args.train_path}",
            "test": f"{len(sources[1])} images of {args.val_path}",
            "images left out": _left_out(args, sum(left_out.values())),
            "seed": args.seed,
        },
    )
    return report.Result(card, numbers, notes, tables)


def _left_out(args, count):
    if args.augmentation == "none":
        return str(count)
    return f"{count} at the evaluation; in training the next one is shown instead"


def _parts(args, train_source, val_source):
    """Return the images to train on and those on which a classifier is chosen."""
    import numpy as np

    from dinov2_jax import errors
    from dinov2_jax.eval.classification import labelled, splits

    if args.select_on == "test":
        return train_source, val_source
    if len(train_source) < 10:
        raise errors.UserError(
            f"a tenth of {len(train_source)} training images is empty: use "
            "--select-on=test"
        )
    inner, outer = splits.hold_out(len(train_source), seed=args.seed)
    return tuple(
        labelled.Subset(train_source, np.sort(part)) for part in (inner, outer)
    )


def _train(args, backbone, prepare, probe, settings, source, extract, measure):
    """Train the probe on crops of images, or on the features of central crops."""
    import numpy as np

    from dinov2_jax.eval.classification import probe_training, train_crops

    identity = {
        "seed": args.seed,
        **backbone.identity,
        "images": source.fingerprint,
    }
    trainer = probe_training.Trainer(
        probe,
        backbone,
        prepare,
        args.train_batch_size,
        args.seed,
        args.out / "probe_state.npz",
        settings | identity,
    )
    features = extract(source) if args.augmentation == "none" else None
    count = len(source if features is None else features)
    order = train_crops.TrainOrder(count, args.train_batch_size, args.seed)

    def batches_of_features(start):
        for step in range(start, args.steps):
            chosen = np.array([index for _, index in order(step)])
            yield np.asarray(features.rows[chosen]), features.labels[chosen]

    def batches_of_crops(start):
        return train_crops.batches(
            source,
            order,
            size=args.size,
            seed=args.seed,
            start=start,
            stop=args.steps,
            workers=backbone.workers,
        )

    batches = batches_of_crops if features is None else batches_of_features
    return trainer.train(
        batches, images=features is None, every=args.every, after=measure
    )


def _numbers(chosen, val_source, real, more, corrupted, extract):
    """Measure the chosen classifier on all test sets; return numbers and tables."""
    import numpy as np

    from dinov2_jax.eval import report
    from dinov2_jax.eval.classification import accuracy, test_sets

    def score(source):
        found = extract(source)
        return chosen.scores(np.asarray(found.rows)), found.labels, found.indices

    scores, labels, indices = score(val_source)
    numbers, tables = {}, []
    for name, value in test_sets.accuracies(scores, labels, None).items():
        numbers[f"linear/{name}"] = value
    if real is not None:
        predicted = accuracy.predictions(scores, k=1)
        numbers["linear/real_top1"] = accuracy.micro(predicted, real[indices])
    for each in more:
        found = test_sets.accuracies(*score(each.source)[:2], each.mapping)
        numbers |= {f"linear/{each.name}/{name}": x for name, x in found.items()}
    if corrupted:
        found = test_sets.imagenet_c(corrupted, score)
        for name in ("mce15", "mce19"):
            if name in found:
                numbers[f"linear/imagenet_c/{name}"] = found[name]
        tables.append(
            report.Table(
                "ImageNet-C: top-1 by severity, and error relative to AlexNet",
                ("corruption", 1, 2, 3, 4, 5, "relative error"),
                [
                    (name, *top1, found["errors"][name])
                    for name, top1 in found["top1"].items()
                ],
            )
        )
    return numbers, tables
