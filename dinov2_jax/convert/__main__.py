"""Weights for other worlds: python -m dinov2_jax.convert SRC DST --to huggingface."""

import argparse
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from dinov2_jax import errors


def main(argv: list[str] | None = None) -> int:
    """Converts as the flags say; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("dinov2_jax").setLevel(logging.INFO)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # weights need no accelerator
    from dinov2_jax.convert import targets  # imports jax, after the line above

    args = _parser(list(targets.TARGETS)).parse_args(argv)
    try:
        _convert(args)
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return errors.INTERRUPTED
    return 0


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dinov2_jax.convert",
        description="Converts DINOv2 weights and runs the result in its own world.",
    )
    parser.add_argument("source", help="whatever dinov2_jax.load takes")
    parser.add_argument("destination", type=pathlib.Path, help="file or folder")
    parser.add_argument("--to", required=True, choices=names)
    parser.add_argument(
        "--which",
        choices=("teacher", "student", "both"),
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
        type=int,
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
        "--no-verify", action="store_true", help="do not run what was written"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is at the destination"
    )
    return parser


def _convert(args: argparse.Namespace) -> None:
    from dinov2_jax.convert import targets
    from dinov2_jax.weights import reading

    destination = args.destination
    both = args.which == "both"
    heads = args.heads or both
    target = targets.check(args.to, destination, heads=heads, both=both)
    report_path = _report_path(destination, is_file=bool(target.suffixes))
    _check_destination(destination, args.overwrite)
    size = _parse_size(args.size, square=not target.bakes_size)
    owners: dict[str | None, reading.Weights] = {
        which: reading.read(
            args.source,
            which=which,
            heads=heads,
            num_heads=args.num_heads,
            image_size=size[0] if size and not target.bakes_size else None,
            ignore=args.ignore,
        )
        for which in (("student", "teacher") if both else (args.which,))
    }
    weights = owners.get("teacher") or next(iter(owners.values()))
    size = size or (weights.module.image_size,) * 2
    # Everything is written and checked here, and moved when it is good.
    with tempfile.TemporaryDirectory(
        dir=destination.parent, prefix=f".{destination.name}."
    ) as folder:
        written = pathlib.Path(folder) / destination.name
        target.write(written, owners, size, heads)
        checked = {"skipped": "--no-verify"}
        if not args.no_verify:
            checked = _verify(args, written, weights, size, heads)
        report = _report(args, written, weights, checked)
        if args.to == "onnx":  # of a larger model that was here
            destination.with_name(f"{destination.name}.data").unlink(missing_ok=True)
        _move(pathlib.Path(folder), destination)
    report_path.write_text(json.dumps(report, indent=2) + "\n")
    _say(destination, report)


def _report_path(destination: pathlib.Path, is_file: bool) -> pathlib.Path:
    """Beside a file, inside a folder."""
    if is_file:
        return destination.with_name(f"{destination.name}.json")
    return destination / "conversion.json"


def _check_destination(destination: pathlib.Path, overwrite: bool) -> None:
    if not destination.parent.is_dir():
        raise errors.UserError(
            f"there is no folder {destination.parent}: make it first"
        )
    if destination.exists() and not overwrite:
        raise errors.UserError(
            f"{destination} exists: add --overwrite to replace it, or name another"
        )
    if not os.access(destination.parent, os.W_OK):
        raise errors.UserError(f"cannot write to the folder {destination.parent}")


def _parse_size(text: str | None, *, square: bool) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        height, width = (int(n) for n in text.lower().split("x"))
    except ValueError as error:
        raise errors.UserError(
            f"--size={text}: write it as HxW in px, for example 518x518"
        ) from error
    if square and height != width:
        raise errors.UserError(
            f"--size={text}: position embeddings are stored for a square, such as "
            f"{height}x{height}; only onnx and stablehlo are made for other sizes"
        )
    return height, width


def _verify(args, written, weights, size, heads) -> dict[str, Any]:
    from dinov2_jax.convert import verify

    which = None if args.which == "both" else args.which
    checked = verify.run(args.to, written, weights, size=size, which=which, heads=heads)
    worst = max(checked.get("relative_error", {"": 0.0}).values())
    if not worst <= verify.TOLERANCE:
        raise errors.UserError(
            f"what was written for {args.to} gives other features: relative error "
            f"{worst:.1e}, more than {verify.TOLERANCE:.0e}; nothing was kept. Please "
            "report this with the source of the weights"
        )
    return checked


def _report(args, written, weights, checked) -> dict[str, Any]:
    from dinov2_jax.weights import architecture

    files = [written] if written.is_file() else sorted(written.rglob("*"))
    files += sorted(written.parent.glob(f"{written.name}.*"))
    files = [path for path in files if path.is_file()]
    return {
        "source": str(args.source),
        "target": args.to,
        "which": args.which or "teacher, or all there is",
        "model": architecture.describe(weights.module),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": {
            str(path.relative_to(written.parent)): _sha256(path) for path in files
        },
        "verified": checked,
    }


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(folder: pathlib.Path, destination: pathlib.Path) -> None:
    """Moves all that was written beside the destination, replacing what was there."""
    for path in sorted(folder.iterdir()):
        goal = destination.parent / path.name
        if goal.is_dir():
            shutil.rmtree(goal)
        path.replace(goal)


def _say(destination: pathlib.Path, report: dict[str, Any]) -> None:
    checked = report["verified"]
    if "skipped" in checked:
        print(f"{destination}: written, not verified: {checked['skipped']}")
        return
    packages = ", ".join(f"{k} {v}" for k, v in checked["packages"].items())
    error = ", ".join(f"{k} {v:.1e}" for k, v in checked["relative_error"].items())
    print(
        f"{destination}: written and verified with {packages}: relative error {error}"
    )


if __name__ == "__main__":
    sys.exit(main())
