"""Flags that name the images of a task and their transform."""

import argparse
import os

from dinov2_jax import cli

path = os.path.expanduser  # the shell does not expand --train-path=~/train


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """Add --train-path, --val-path and --max-images.

    Args:
      parser: The task's parser.
    """
    parser.add_argument(
        "--train-path",
        required=True,
        type=path,
        metavar="PATH",
        help="labelled training images: a folder with one sub-folder per class, or "
        "any other source the trainer reads",
    )
    parser.add_argument(
        "--val-path",
        required=True,
        type=path,
        metavar="PATH",
        help="labelled test images of the same classes",
    )
    parser.add_argument(
        "--max-images",
        type=cli.positive,
        default=0,
        help="images per set, evenly spaced; default: all",
    )


def add_transform(
    parser: argparse.ArgumentParser, *, resize: int = 256, size: int = 224
) -> None:
    """Add --resize and --size.

    Args:
      parser: The task's parser.
      resize: The reference's short side before the crop, px.
      size: The reference's side of the crop, px.
    """
    parser.add_argument(
        "--resize",
        type=cli.positive,
        default=resize,
        help="short side before the crop, px (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=cli.positive,
        default=size,
        help="side of the central crop, px (default: %(default)s)",
    )


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """Add --augmentation.

    Args:
      parser: The task's parser.
    """
    parser.add_argument(
        "--augmentation",
        choices=("crops", "none"),
        default="crops",
        help="random-resized crops and flips, or central crops (for digits, say; "
        "frozen features of those are extracted once)",
    )


def add_baselines(parser: argparse.ArgumentParser) -> None:
    """Add --baselines.

    Args:
      parser: The task's parser.
    """
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also run with the same ViT untrained and with pixels as features, for "
        "comparison; takes three times as long",
    )
