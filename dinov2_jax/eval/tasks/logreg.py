"""Logistic regression; mirrors the reference's `eval/log_regression.py`."""

import argparse
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import data_flags

REFERENCE = {"resize": 224, "size": 224, "grid": "45 values of C from 1e-6 to 1e5"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    data_flags.add_labelled(parser)
    data_flags.add_transform(parser, resize=224)
    data_flags.add_baselines(parser)
    parser.add_argument(
        "--mean-per-class",
        action="store_true",
        help="choose C by the mean accuracy of the classes, as is usual for Aircraft, "
        "Pets, Caltech-101 and Flowers",
    )
    parser.add_argument(
        "--cs",
        type=float,
        nargs="+",
        help="values of C; default: 45 from 1e-6 to 1e5",
    )
    parser.add_argument(
        "--select-path",
        type=data_flags.path,
        metavar="PATH",
        help="labelled images to choose C on; default: a tenth of --train-path",
    )
    parser.add_argument(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of the held-out tenth (0)",
    )


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Fit, choose C, fit again and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: The images do not fit.
    """
    import numpy as np

    from dinov2_jax import errors
    from dinov2_jax.eval import feature_cache, protocol_card, report
    from dinov2_jax.eval.classification import labelled, logistic_regression, splits

    metric = "mean_class_accuracy" if args.mean_per_class else "accuracy"
    cs = sorted(args.cs or logistic_regression.REFERENCE_CS)
    if min(cs) <= 0:
        raise errors.UserError(f"--cs has {min(cs):g}: every C must be above 0")
    prepare = backbone.prepare(args.resize, args.size)
    sources = list(labelled.open_train_and_val(args))
    if args.select_path:
        select = labelled.open_labelled(
            args.select_path, "--select-path", max_images=args.max_images
        )
        sources.append(
            labelled.same_classes(sources[0], select, args.train_path, args.select_path)
        )
    labelled.need_two_classes(sources[0], args.train_path)
    train, val, *select = (
        feature_cache.extract(backbone, source, kind="cls", prepare=prepare)
        for source in sources
    )
    if len(train) < 10 and not select:
        raise errors.UserError(
            f"a tenth of {len(train)} training images is empty: add --select-path"
        )
    everything = np.asarray(train.rows), train.labels
    if select:
        fitted = everything
        held_out = np.asarray(select[0].rows), select[0].labels
        everything = tuple(np.concatenate(pair) for pair in zip(fitted, held_out))
        selected_on = f"{len(held_out[1])} images of {args.select_path}"
    else:
        inner, outer = splits.hold_out(len(train), seed=args.seed)
        fitted, held_out = (
            tuple(part[chosen] for part in everything) for chosen in (inner, outer)
        )
        selected_on = f"a held-out tenth of train, {len(outer)} images"
    if len(np.unique(fitted[1])) < 2:
        raise errors.UserError(
            "the training images have only one class: add more with --train-path"
        )
    tried = []
    for c, value in logistic_regression.select_c(fitted, held_out, cs, metric=metric):
        tried.append((c, value))
        print(f"C {c:<12.6g} {metric} {value:.4f} held out", flush=True)
    best_c, best_value = max(tried, key=lambda pair: pair[1])  # the first of equals
    solution = logistic_regression.Problem(*everything).solve(best_c)
    predicted = solution.predict(np.asarray(val.rows))
    numbers = {
        f"logreg/{name}": measure(predicted, val.labels)
        for name, measure in logistic_regression.METRICS.items()
    }
    notes = []
    if best_c in (cs[0], cs[-1]) and len(cs) > 1:
        notes.append(f"the best C, {best_c:g}, is at an end of the grid")
    grid = REFERENCE["grid"] if not args.cs else " ".join(f"{c:g}" for c in cs)
    card = protocol_card.make_card(
        "logreg",
        backbone,
        {"resize": args.resize, "size": args.size, "grid": grid}
        | labelled.images_of_a_set(args, *sources),
        reference=REFERENCE | labelled.ALL_IMAGES,
        prepare=prepare,
        fields={
            "C": f"{best_c:g}, of {len(cs)}",
            "selected on": f"{selected_on} ({metric} {best_value:.4f})",
            "fitted on": f"{len(everything[1])} images",
            "train": f"{len(train)} images of {args.train_path}",
            "test": f"{len(val)} images of {args.val_path}",
            "images left out": len(train.skipped) + len(val.skipped),
            "solver": f"L-BFGS in float64, {solution.iterations} iterations, objective "
            f"{solution.objective:.10g}",
            "seed": args.seed,
        },
    )
    table = report.Table(f"Held-out {metric}", ("C", metric), tried)
    return report.Result(card, numbers, notes, [table])
