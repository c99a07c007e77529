"""Flags of the task `finetune`, their checks, and the recipe that they describe."""

import argparse
from typing import Any

from dinov2_jax import cli, errors
from dinov2_jax.eval.tasks import data_flags

_NUMBERS = (  # flag, type, default, help
    ("--steps", cli.positive, 2000, "(default: %(default)s)"),
    (
        "--train-batch-size",
        cli.positive,
        64,
        "images in a step, over all devices (default: %(default)s)",
    ),
    (
        "--group-size",
        cli.positive,
        8,
        "images that are mixed with each other and among which blocks skip some; it "
        "divides the batch, and as many devices are used as divide the number of "
        "groups (default: %(default)s)",
    ),
    ("--lr", float, 1e-4, "after the warm-up (default: %(default)s)"),
    ("--min-lr", float, 1e-6, "at the end of the cosine (default: %(default)s)"),
    ("--warmup-steps", cli.positive, None, "default: a tenth of --steps"),
    (
        "--layerwise-decay",
        float,
        0.75,
        "factor of the learning rate from each block to the one below (default: "
        "%(default)s)",
    ),
    ("--weight-decay", float, 0.05, "(default: %(default)s)"),
    (
        "--clip-grad",
        float,
        1.0,
        "largest norm of the gradients of the backbone and of the head; 0 for any "
        "(default: %(default)s)",
    ),
    (
        "--drop-path",
        float,
        0.1,
        "share of the images that each half of a block skips (default: %(default)s)",
    ),
    ("--smoothing", float, 0.1, "of the labels (default: %(default)s)"),
    ("--mixup", float, 0.8, "alpha of mixup, 0 for none (default: %(default)s)"),
    ("--cutmix", float, 1.0, "alpha of CutMix, 0 for none (default: %(default)s)"),
    (
        "--ema",
        float,
        0.0,
        "decay of an average of the weights, such as 0.999, which is then evaluated "
        "and saved; 0 for none (default: %(default)s)",
    ),
    ("--lora-alpha", float, 16.0, "the change is scaled by alpha / rank (16)"),
    ("--every", cli.positive, 500, "steps between saves (default: %(default)s)"),
    (
        "--seed",
        cli.seed,
        0,
        "of head, order, crops and the rest (default: %(default)s)",
    ),
)
_BELOW_ONE = ("drop_path", "smoothing", "ema")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    data_flags.add_labelled(parser)
    data_flags.add_transform(parser)
    data_flags.add_baselines(parser)
    for flag, kind, default, about in _NUMBERS:
        parser.add_argument(flag, type=kind, default=default, help=about)
    data_flags.add_augmentation(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--last-blocks",
        type=cli.positive,
        default=0,
        metavar="N",
        help="train the last N blocks, the last norm and the head; default: everything",
    )
    part.add_argument(
        "--lora-rank",
        type=cli.positive,
        default=0,
        metavar="R",
        help="train the head and rank-R updates of the attention weights, such as "
        "8, with a larger --lr, such as 1e-3",
    )


def check(args: argparse.Namespace, depth: int) -> None:
    """Check that the flags fit each other and the model.

    Args:
      args: The parsed flags.
      depth: Number of blocks of the model.

    Raises:
      UserError: They do not.
    """
    batch, group = args.train_batch_size, args.group_size
    if batch % group:
        raise errors.UserError(
            f"--train-batch-size={batch} is not a multiple of --group-size={group}: "
            f"use --train-batch-size={-(-batch // group) * group}"
        )
    if args.last_blocks > depth:
        raise errors.UserError(
            f"--last-blocks={args.last_blocks} and the model has {depth} blocks: use "
            "fewer, or leave it out to train everything"
        )
    for name in _BELOW_ONE:
        value = getattr(args, name)
        if not 0 <= value < 1:
            flag = "--" + name.replace("_", "-")
            raise errors.UserError(f"{flag}={value:g}: use a number from 0 to below 1")
    for name in ("lr", "layerwise_decay", "lora_alpha"):
        value = getattr(args, name)
        if not 0 < value < float("inf"):
            flag = "--" + name.replace("_", "-")
            raise errors.UserError(f"{flag}={value:g}: use a number above 0")
    for name in ("min_lr", "weight_decay", "clip_grad", "mixup", "cutmix"):
        value = getattr(args, name)
        if not 0 <= value < float("inf"):
            flag = "--" + name.replace("_", "-")
            raise errors.UserError(f"{flag}={value:g}: use 0 or more")


def make_recipe(args: argparse.Namespace) -> Any:
    """Return the `finetuning.recipe.Recipe` that the flags describe.

    Args:
      args: The parsed flags.
    """
    from dinov2_jax.eval.finetuning import recipe

    return recipe.Recipe(
        steps=args.steps,
        batch_size=args.train_batch_size,
        group_size=args.group_size,
        lr=args.lr,
        min_lr=args.min_lr,
        warmup_steps=args.warmup_steps or args.steps // 10,
        layerwise_decay=args.layerwise_decay,
        weight_decay=args.weight_decay,
        clip_grad=args.clip_grad,
        drop_path=args.drop_path,
        smoothing=args.smoothing,
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        ema=args.ema,
        seed=args.seed,
    )
