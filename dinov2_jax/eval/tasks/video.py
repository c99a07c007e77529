"""Classification of videos by features of single frames.

The paper (section 7.2) takes 8 evenly spaced frames and a linear head on their mean
(UCF101, Kinetics-400) or their concatenation (Something-Something v2), and states
neither grid nor crops; the reference has no code. So the protocol is `ours`, with
logistic regression as the linear head.
"""

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
    for part, purpose in (("train", "to learn from"), ("val", "to test on")):
        add(
            f"--{part}-path",
            required=True,
            type=data_flags.path,
            metavar="PATH",
            help=f"videos {purpose}: CLASS/VIDEO/FRAME.jpg, or CLASS/VIDEO.mp4 with "
            "the extra `video`",
        )
    add(
        "--max-videos",
        type=cli.positive,
        default=0,
        help="videos per set, evenly spaced; default: all",
    )
    data_flags.add_transform(parser)
    add("--frames", type=cli.positive, default=8, help="frames per video (default: 8)")
    add(
        "--combine",
        choices=("mean", "concat"),
        default="mean",
        help="how frame features are combined (default: mean)",
    )
    add("--cs", type=float, nargs="+", help="values of C; default: 45 from 1e-6 to 1e5")
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of the held-out tenth (0)",
    )


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Fit, choose C on a held-out tenth, fit again and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: The videos do not fit.
    """
    import dataclasses

    import numpy as np

    from dinov2_jax import errors
    from dinov2_jax.eval import feature_cache, protocol_card, report
    from dinov2_jax.eval.classification import (
        clips,
        labelled,
        logistic_regression,
        splits,
    )

    cs = sorted(args.cs or logistic_regression.REFERENCE_CS)
    if min(cs) <= 0:
        raise errors.UserError(f"--cs has {min(cs):g}: every C must be above 0")
    prepare = backbone.prepare(args.resize, args.size)
    train, val = (
        clips.open_clips(path, flag, frames=args.frames, max_videos=args.max_videos)
        for flag, path in (
            ("--train-path", args.train_path),
            ("--val-path", args.val_path),
        )
    )
    same = labelled.same_classes(
        train.source, val.source, args.train_path, args.val_path
    )
    val = dataclasses.replace(val, source=same)
    labelled.need_two_classes(train.source, args.train_path)

    def extract(videos):
        found = feature_cache.extract(
            backbone, videos.source, kind="cls", prepare=prepare
        )
        return videos.combine(found.rows, found.indices, how=args.combine)

    (x, y), (val_x, val_y) = extract(train), extract(val)
    if len(y) < 10 or not len(val_y):
        raise errors.UserError(
            f"{len(y)} videos of --train-path and {len(val_y)} of --val-path can be "
            "read: at least 10 and 1 are needed"
        )
    inner, outer = splits.hold_out(len(y), seed=args.seed)
    if len(np.unique(y[inner])) < 2:
        raise errors.UserError(
            "the training videos have only one class: add more with --train-path"
        )
    tried = list(
        logistic_regression.select_c((x[inner], y[inner]), (x[outer], y[outer]), cs)
    )
    best_c, best_value = max(tried, key=lambda pair: pair[1])  # the first of equals
    predicted = logistic_regression.Problem(x, y).solve(best_c).predict(val_x)
    numbers = {
        f"video/{name}": measure(predicted, val_y)
        for name, measure in logistic_regression.METRICS.items()
    }
    card = protocol_card.make_card(
        "video",
        backbone,
        {
            "resize": args.resize,
            "size": args.size,
            "frames": args.frames,
            "combine": args.combine,
        },
        reference={"frames": None},  # it has no code for this
        prepare=prepare,
        fields={
            "head": "logistic regression on class tokens",
            "C": f"{best_c:g}, of {len(cs)}",
            "selected on": f"a held-out tenth of train, {len(outer)} videos (accuracy "
            f"{best_value:.4f})",
            "train": f"{len(y)} videos of {args.train_path}",
            "test": f"{len(val_y)} videos of {args.val_path}",
            "videos left out": len(train) + len(val) - len(y) - len(val_y),
            "seed": args.seed,
        },
    )
    table = report.Table("Held-out accuracy", ("C", "accuracy"), tried)
    return report.Result(card, numbers, [], [table])
