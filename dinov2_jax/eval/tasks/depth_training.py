"""Training of the head of the depth task: its flags, and how they are followed."""

import argparse
import dataclasses
import functools
import pathlib
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import dense_flags

_BY_ABS_REL = "the test images, by their best abs_rel"
_SELECT_EVERY = {"kitti": 6400}  # steps; 800 of the others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training.

    Args:
      parser: The task's parser.
    """
    add = parser.add_argument
    dense_flags.add_training(parser, steps=38_400, batch_size=16, lr=1e-4)
    add(
        "--crop",
        type=cli.positive,
        nargs=2,
        metavar=("H", "W"),
        help="training crop, px",
    )
    add(
        "--gradient-loss",
        choices=("none", "spatial"),
        default="none",
        help="none, as the released heads were trained, or along rows and columns",
    )
    add(
        "--select",
        choices=("last", "abs_rel"),
        default="last",
        help="the head to evaluate: the last one, or as the reference the one with the "
        "best abs_rel on the test images",
    )
    add(
        "--select-every",
        type=cli.positive,
        help="steps between those to choose from; default: 6400 for KITTI, else 800",
    )


def train(
    args: argparse.Namespace,
    backbone: Any,
    model: Any,
    max_depth: float,
    test: Any,
    protocol: Any,
) -> tuple[Any, list[float], dict[str, Any]]:
    """Train a head as the flags say.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.
      model: Its `pretrained.Model`, in the dtype of its matmuls.
      max_depth: Largest depth, metres.
      test: Images to choose a head on, `pairs.Pairs`.
      protocol: Which of their pixels count, a `depth_metrics.Protocol`.

    Returns:
      The head, the loss of every step, and what the protocol card says of it.

    Raises:
      UserError: The data do not fit, or the loss is not finite.
    """
    from dinov2_jax.eval.depth import (
        best_head,
        depth_augment,
        depth_data,
        depth_model,
    )

    root = pathlib.Path(args.train_data or args.data)
    data_format = (not args.train_data and args.format) or depth_data.guess_format(root)
    data = depth_data.depth_pairs(
        root,
        data_format=data_format,
        split="train",
        unit=args.depth_unit,
        max_depth=max_depth,
    )
    augmentation = depth_augment.AUGMENTATIONS[data_format]
    if args.crop:
        augmentation = dataclasses.replace(augmentation, crop=tuple(args.crop))
    warmup = args.steps // 3 if args.warmup_steps is None else args.warmup_steps
    settings = {
        "kind": args.head_kind,
        "depth_range": (1e-3, max_depth),
        "steps": args.steps,
        "batch_size": args.train_batch_size,
        "lr": args.lr,
        "warmup_steps": warmup,
        "gradient": args.gradient_loss,
        "seed": args.seed,
    }
    every = args.select_every or _SELECT_EVERY.get(data_format, 800)
    chosen_by = ()
    if args.select == "abs_rel":
        chosen_by = (
            args.select,
            every,
            test.fingerprint,
            vars(protocol),
            args.flip,
            args.sun_resize,
        )
    key = dense_flags.fingerprint(
        backbone.identity,
        data.fingerprint,
        dataclasses.asdict(augmentation),
        settings,
        *chosen_by,
    )
    best = None
    if args.select == "abs_rel":
        best = best_head.BestHead(
            functools.partial(
                depth_model.DepthEstimator,
                model,
                flip=args.flip,
                sun_resize=args.sun_resize,
            ),
            test,
            protocol,
            path=args.out / "best_head.npz",
            fingerprint=key,
        )
    head, losses = depth_model.train(
        model,
        data,
        augmentation=augmentation,
        workers=backbone.workers,
        save=args.out / "training.npz",
        fingerprint=key,
        save_every=args.save_every,
        after=best,
        every=every,
        **settings,
    )
    about = settings | {
        "selected": f"{_BY_ABS_REL}, step {best.step:,}" if best else "",
        "data": data,
        "train": f"{len(data)} images of {root}",
        "crop": augmentation.crop,
        "reference crop": depth_augment.AUGMENTATIONS[data_format].crop,
    }
    return best.of(head) if best else head, losses, about
