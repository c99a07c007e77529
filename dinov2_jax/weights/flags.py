"""Flags of programs that load a model: how its file of weights is read."""

import argparse
from typing import Any

from dinov2_jax import cli


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--which",
        choices=("teacher", "student", "ema"),
        help="model to take from a training checkpoint (default: teacher)",
    )
    parser.add_argument(
        "--num-heads",
        type=cli.positive,
        help="number of attention heads, if the source does not determine it",
    )
    parser.add_argument(
        "--prefix",
        default="",
        help="prefix of the backbone's tensor names in files of other projects",
    )
    parser.add_argument(
        "--key", default="", help="entry of such a file that holds the weights"
    )


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the flags, as `dinov2_jax.load` takes them."""
    return {
        name: getattr(args, name) for name in ("which", "num_heads", "prefix", "key")
    }
