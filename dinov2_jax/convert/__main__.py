"""Conversion of weights: python -m dinov2_jax.convert SRC DST --to huggingface."""

import argparse
import logging
import os
import pathlib
import sys
from typing import Any

from dinov2_jax import cli, errors
from dinov2_jax.convert import formats


def main(argv: list[str] | None = None) -> int:
    """Convert as the flags say and return the exit code."""
    args = _parser().parse_args(argv)
    return cli.exit_code(lambda: _convert(args))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dinov2-jax convert",
        description="Converts DINOv2 weights, loads the result with the target's own "
        "library and compares features.",
    )
    parser.add_argument(
        "source", type=os.path.expanduser, help="anything dinov2_jax.load accepts"
    )
    parser.add_argument("destination", type=cli.path, help="file or folder")
    parser.add_argument("--to", required=True, choices=list(formats.FORMATS))
    parser.add_argument(
        "--which",
        choices=("teacher", "student", "both", "ema"),
        help="model to take from a training checkpoint; both includes the heads "
        "(default: teacher)",
    )
    parser.add_argument(
        "--size",
        metavar="HxW",
        help="image size in px: onnx and stablehlo exports are fixed to it, other "
        "targets resample position embeddings to it and need a square (default: "
        "the model's size)",
    )
    parser.add_argument(
        "--heads", action="store_true", help="include the projection heads"
    )
    parser.add_argument(
        "--num-heads",
        type=cli.positive,
        help="number of attention heads, if the source does not determine it",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PREFIX",
        help="skip tensors whose names start with this; may be repeated",
    )
    parser.add_argument(
        "--prefix",
        default="",
        help="prefix of the backbone's tensor names in files of other projects",
    )
    parser.add_argument(
        "--key", default="", help="entry of such a file that holds the weights"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not verify the result"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing destination"
    )
    return parser


def _convert(args: argparse.Namespace) -> None:
    both = args.which == "both"
    heads = args.heads or both
    target = formats.check(args.to, args.destination, heads=heads, both=both)
    # These import jax.
    from dinov2_jax.convert import destination as destination_lib
    from dinov2_jax.convert import export
    from dinov2_jax.weights import reading

    destination = destination_lib.Destination(
        args.destination.absolute(), is_file=bool(target.suffixes), target=args.to
    )
    destination.check(args.source, overwrite=args.overwrite)
    size = _parse_size(args.size, square=not target.has_fixed_size)
    owners: dict[str | None, reading.Weights] = {
        which: reading.read(
            args.source,
            which=which,
            heads=heads,
            num_heads=args.num_heads,
            image_size=size[0] if size and not target.has_fixed_size else None,
            ignore=args.ignore,
            prefix=args.prefix,
            key=args.key,
        )
        for which in (("student", "teacher") if both else (args.which,))
    }
    owners = {weights.which: weights for weights in owners.values()}
    report = export.export(
        owners,
        destination,
        source=str(args.source),
        size=size,
        heads=heads,
        skip="--no-verify" if args.no_verify else "",
    )
    _print_result(args.destination, report)


def _parse_size(text: str | None, *, square: bool) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        height, width = (int(n) for n in text.lower().split("x"))
    except ValueError as error:
        raise errors.UserError(
            f"--size={text}: write it as HxW in px, for example 518x518"
        ) from error
    if min(height, width) < 1:
        raise errors.UserError(f"--size={text}: both sides must be positive")
    if square and height != width:
        raise errors.UserError(
            f"--size={text}: position embeddings are stored for a square, such as "
            f"{height}x{height}; only onnx and stablehlo take other sizes"
        )
    return height, width


def _print_result(destination: pathlib.Path, report: dict[str, Any]) -> None:
    checked = report["verified"]
    if "warning" in report:
        print(f"warning: {report['warning']}", file=sys.stderr)
    if "skipped" in checked:
        print(f"{destination}: written, not verified: {checked['skipped']}")
        return
    packages = ", ".join(f"{k} {v}" for k, v in checked["packages"].items())
    error = ", ".join(f"{k} {v:.1e}" for k, v in checked["relative_error"].items())
    print(
        f"{destination}: written and verified with {packages}: relative error {error}"
    )


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # weights need no accelerator
    cli.exit_on_signals()
    cli.start(main, log_level=logging.INFO)
