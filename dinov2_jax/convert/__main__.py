"""Weights for other worlds: python -m dinov2_jax.convert SRC DST --to huggingface."""

import argparse
import hashlib
import json
import logging
import os
import pathlib
import signal
import sys
import tempfile
from typing import Any

from dinov2_jax import errors

_REPORT = "conversion.json"  # in a folder; beside a file it is the file's name + .json
_KEEPS_ALL = ("torch-hub", "safetensors", "huggingface", "orbax")


def main(argv: list[str] | None = None) -> int:
    """Converts as the flags say; returns the exit code."""
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
    is_file = bool(target.suffixes)
    destination = destination.absolute()
    _check_destination(destination, args, is_file=is_file)
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
    owners = {weights.which: weights for weights in owners.values()}
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
            checked = _verify(args, written, owners, size, heads)
        report = _report(args, written, weights, checked)
        _report_path(written).write_text(json.dumps(report, indent=2) + "\n")
        _move(pathlib.Path(folder), destination)
    _say(args.destination, report)


def _report_path(written: pathlib.Path) -> pathlib.Path:
    """Beside a file, inside a folder."""
    if written.is_dir():
        return written / _REPORT
    return written.with_name(f"{written.name}.json")


def _check_destination(
    destination: pathlib.Path, args: argparse.Namespace, *, is_file: bool
) -> None:
    if not destination.name or not destination.parent.is_dir():
        raise errors.UserError(
            f"there is no folder {destination.parent}: make it first"
        )
    goals = [destination]
    if is_file:
        goals += [destination.with_name(f"{destination.name}.json")]
    if args.to == "onnx":
        goals += [destination.with_name(f"{destination.name}.data")]
    there = [goal for goal in goals if goal.exists() or goal.is_symlink()]
    if there and not args.overwrite:
        raise errors.UserError(
            f"{there[0]} exists: add --overwrite to replace it, or name another"
        )
    if is_file and any(goal.is_dir() for goal in there):
        raise errors.UserError(f"{destination} is a folder: name a file")
    if not is_file and there and not destination.is_dir():
        raise errors.UserError(f"{destination} is a file: name a folder")
    ours = (destination / _REPORT).is_file() and not destination.is_symlink()
    if destination.is_dir() and not ours and any(destination.iterdir()):
        raise errors.UserError(
            f"{destination} holds files that no conversion wrote: name another folder"
        )
    source = pathlib.Path(args.source).absolute()
    if not is_file and (destination == source or destination in source.parents):
        raise errors.UserError(
            f"{destination} holds the source, which it would replace: name another"
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
    if min(height, width) < 1:
        raise errors.UserError(f"--size={text}: both sides have to be positive")
    if square and height != width:
        raise errors.UserError(
            f"--size={text}: position embeddings are stored for a square, such as "
            f"{height}x{height}; only onnx and stablehlo are made for other sizes"
        )
    return height, width


def _verify(args, written, owners, size, heads) -> dict[str, Any]:
    """Features of every owner by the target's packages, and every tensor's bits."""
    from dinov2_jax.convert import verify

    for which, weights in owners.items():
        checked = verify.run(
            args.to, written, weights, size=size, which=which, heads=heads
        )
        found = checked.get("relative_error", {})
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
    from dinov2_jax.weights import architecture

    files = sorted(p for p in written.parent.rglob("*") if p.is_file())
    return {
        "source": str(args.source),
        "target": args.to,
        "which": "both" if args.which == "both" else weights.which,
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
    """Moves all that was written to the destination, replacing what was there.

    What belongs to a file goes before it, and what was there is gone first: a crash
    leaves no file with the report or the data of another.
    """
    suffixes = (".json", ".data") if destination.suffix == ".onnx" else (".json",)
    companions = [destination.with_name(f"{destination.name}{s}") for s in suffixes]
    if destination.is_dir():
        old = folder / "old"
        destination.replace(old)
        (folder / destination.name).replace(destination)
        return
    destination.unlink(missing_ok=True)
    for path in companions:
        path.unlink(missing_ok=True)
        if (folder / path.name).exists():
            (folder / path.name).replace(path)
    (folder / destination.name).replace(destination)


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
    # A request to end leaves like Ctrl-C, which tidies up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
