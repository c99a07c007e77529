"""Conversion of weights: python -m dinov2_jax.convert SRC DST --to huggingface."""

import argparse
import dataclasses
import logging
import os
import pathlib
import signal
import sys
from typing import Any

from dinov2_jax import cli, errors


def main(argv: list[str] | None = None) -> int:
    """Convert as the flags say and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("jax", "orbax", "absl", "tensorstore", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # weights need no accelerator
    try:
        from dinov2_jax.convert import targets  # imports jax, after the lines above

        _convert(_parser(list(targets.TARGETS)).parse_args(argv))
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return errors.INTERRUPTED
    return 0


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dinov2-jax convert",
        description="Converts DINOv2 weights and runs the result in its own world.",
    )
    parser.add_argument("source", help="whatever dinov2_jax.load takes")
    parser.add_argument("destination", type=pathlib.Path, help="file or folder")
    parser.add_argument("--to", required=True, choices=names)
    parser.add_argument(
        "--which",
        choices=("teacher", "student", "both", "ema"),
        help="of a training checkpoint; default: the teacher. both: with the heads",
    )
    parser.add_argument(
        "--size",
        metavar="HxW",
        help="image size in px: onnx and stablehlo are made for it, elsewhere the "
        "position embeddings are resampled to it (a square); default: the model's own",
    )
    parser.add_argument(
        "--heads", action="store_true", help="take the projection heads along"
    )
    parser.add_argument(
        "--num-heads",
        type=cli.positive,
        help="of the attention, where the source does not tell (unreleased widths)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PREFIX",
        help="leave out tensors whose names begin so; may be repeated",
    )
    parser.add_argument(
        "--prefix",
        default="",
        help="what the names of the backbone begin with, in files of other projects",
    )
    parser.add_argument(
        "--key", default="", help="entry of such a file that holds the weights"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not run what was written"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is at the destination"
    )
    return parser


def _convert(args: argparse.Namespace) -> None:
    from dinov2_jax.convert import destination as destination_lib
    from dinov2_jax.convert import export, targets
    from dinov2_jax.weights import reading

    both = args.which == "both"
    heads = args.heads or both
    target = targets.check(args.to, args.destination, heads=heads, both=both)
    destination = destination_lib.Destination(
        args.destination.absolute(), is_file=bool(target.suffixes), target=args.to
    )
    destination.check(args.source, overwrite=args.overwrite)
    size = _parse_size(args.size, square=not target.bakes_size)
    owners: dict[str | None, reading.Weights] = {
        which: reading.read(
            args.source,
            which=which,
            heads=heads,
            num_heads=args.num_heads,
            image_size=size[0] if size and not target.bakes_size else None,
            ignore=args.ignore,
            prefix=args.prefix,
            key=args.key,
        )
        for which in (("student", "teacher") if both else (args.which,))
    }
    owners = {w.which: _for_size(w, target, size) for w in owners.values()}
    report = export.export(
        owners,
        destination,
        source=str(args.source),
        size=size,
        heads=heads,
        skip="--no-verify" if args.no_verify else "",
    )
    _say(args.destination, report)


def _for_size(weights, target, size):
    """Return the weights, preprocessed for `size` if they were resampled to it."""
    if size is None or target.bakes_size:
        return weights
    prepare = weights.preprocessing.with_crop(size[0])
    return dataclasses.replace(weights, preprocessing=prepare)


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
        raise errors.UserError(f"--size={text}: both sides have to be positive")
    if square and height != width:
        raise errors.UserError(
            f"--size={text}: position embeddings are stored for a square, such as "
            f"{height}x{height}; only onnx and stablehlo are made for other sizes"
        )
    return height, width


def _say(destination: pathlib.Path, report: dict[str, Any]) -> None:
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
    # SIGTERM ends the program like Ctrl-C, so that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
