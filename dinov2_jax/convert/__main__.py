"""Conversion of weights: python -m dinov2_jax.convert SRC DST --to huggingface."""

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import sys
import tempfile
from typing import Any

from dinov2_jax import cli, errors
from dinov2_jax.convert import formats

_KEEPS_ALL = ("torch-hub", "safetensors", "huggingface", "orbax")


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
        "source", type=os.path.expanduser, help="whatever dinov2_jax.load takes"
    )
    parser.add_argument("destination", type=cli.path, help="file or folder")
    parser.add_argument("--to", required=True, choices=list(formats.FORMATS))
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
        "--no-verify", action="store_true", help="do not run what was written"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is at the destination"
    )
    return parser


def _convert(args: argparse.Namespace) -> None:
    both = args.which == "both"
    heads = args.heads or both
    target = formats.check(args.to, args.destination, heads=heads, both=both)
    # These import jax.
    from dinov2_jax.convert import destination as destination_lib
    from dinov2_jax.convert import targets
    from dinov2_jax.weights import reading
    from dinov2_jax.weights import report as report_lib

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
        )
        for which in (("student", "teacher") if both else (args.which,))
    }
    owners = {w.which: _for_size(w, target, size) for w in owners.values()}
    weights = owners.get("teacher") or next(iter(owners.values()))
    size = size or (weights.module.config.image_size,) * 2
    # Write and verify in a temporary folder, and move the result only if it is good.
    path = destination.path
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}."
    ) as folder:
        written = pathlib.Path(folder) / path.name
        targets.WRITERS[args.to](written, owners, size, heads)
        checked: dict[str, Any] = {"skipped": "--no-verify"}
        lost = targets.lost_interpolation(args.to, weights.module)
        if not args.no_verify:
            checked = _verify(args, written, owners, size, heads, lost)
        report = _report(args, written, weights, checked)
        if lost:
            report["warning"] = _warning(lost, weights.module, checked)
        report_lib.path_of(written).write_text(json.dumps(report, indent=2) + "\n")
        destination.take(pathlib.Path(folder))
    _say(args.destination, report)


def _for_size(weights, target, size):
    """Return the weights, preprocessed for `size` if they were resampled to it."""
    if size is None or target.bakes_size:
        return weights
    prepare = weights.preprocessing.with_crop(size[0])
    return dataclasses.replace(weights, preprocessing=prepare)


def _warning(lost: str, module, checked: dict[str, Any]) -> str:
    """Return one line: what is lost, how much that is, and what to do."""
    side, much = module.config.image_size, ""
    if "other_size" in checked:
        height, width = checked["other_size"]["images"][1:3]
        worst = max(checked["other_size"]["relative_error"].values())
        much = f" (at {height}x{width} by {worst:.1e})"
    return (
        f"{lost}: features agree at {side}x{side} px and differ at other sizes{much}; "
        "keep the report, from which dinov2_jax.load knows, and for others convert "
        "with --size for the size that you will use"
    )


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


def _verify(args, written, owners, size, heads, lost) -> dict[str, Any]:
    """Check every owner's features with the target's packages, and all tensors' bits.

    Features at another size than the model's own may differ if `lost` says so.
    """
    from dinov2_jax.convert import verify

    for which, weights in owners.items():
        checked = verify.run(
            args.to, written, weights, size=size, which=which, heads=heads
        )
        found = dict(checked.get("relative_error", {}))
        if "other_size" in checked and not lost:
            height, width = checked["other_size"]["images"][1:3]
            for name, error in checked["other_size"]["relative_error"].items():
                found[f"{name} at {height}x{width}"] = error
        bad = {k: v for k, v in found.items() if not v <= verify.TOLERANCE}
        if bad:
            worst = ", ".join(f"{name} {error:.1e}" for name, error in bad.items())
            raise errors.UserError(
                f"what was written for {args.to} gives other features: relative error "
                f"{worst}, more than {verify.TOLERANCE:.0e}; nothing was kept. Please "
                "report this with the source of the weights"
            )
        if args.to in _KEEPS_ALL:
            if not verify.same_tensors(written, weights, heads):
                raise errors.UserError(
                    f"what was written for {args.to} holds other values; nothing was "
                    "kept. Please report this with the source of the weights"
                )
            checked["tensors"] = "bit-identical"
    return checked


def _report(args, written, weights, checked) -> dict[str, Any]:

    files = sorted(p for p in written.parent.rglob("*") if p.is_file())
    return {
        "source": str(args.source),
        "target": args.to,
        "which": "both" if args.which == "both" else weights.which,
        "model": weights.module.config.to_dict(),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": {
            str(path.relative_to(written.parent)): _sha256(path) for path in files
        },
        "verified": checked,
    }


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # weights need no accelerator
    cli.exit_on_signals()
    cli.start(main, log_level=logging.INFO)
