r"""Find images that show the same, and which of them to keep.

    dinov2-jax curate dedup --features features.parquet --calibrate=500 \
        --model=dinov2_vits14 --hashes=hashes.parquet --out=dups.parquet
    dinov2-jax curate dedup --features features.parquet --threshold=0.93 \
        --out=dups.parquet

Images are a pair if their features are more similar than a threshold or, with --hashes,
if their perceptual hashes are near. Connected pairs are a component, of which one image
is kept. --against names features of test sets: whole components that touch one leave,
and a report says which images leak.

There is no default threshold, since one that suits a model merges the classes of
another: --calibrate plants duplicates of some of your images, shows what is found, and
uses the lowest threshold above which 1 % of them have another image.

OUT has a row an image: name, component (-1: none), kept, nearest (the most similar
image that is a pair, or ""), similarity, and leak (the test set, or "").
"""

import argparse
import os
import sys
from typing import Any

import numpy as np

from dinov2_jax import cli, errors
from dinov2_jax.weights import flags as weights_flags

_CHAIN_SHARE, _CHAIN_LEAST = 0.001, 20  # of all images, from which a chain is likely


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--features",
        nargs="+",
        required=True,
        type=cli.path,
        help="files of `embed` or `describe`, or folders of them",
    )
    add("--out", required=True, type=cli.path, help="*.parquet")
    add("--threshold", type=cli.number, help="cosine similarity that pairs exceed")
    add(
        "--calibrate",
        type=cli.positive,
        metavar="N",
        help="plant duplicates of N images, such as 500, and propose a threshold",
    )
    add(
        "--model",
        type=os.path.expanduser,
        help="the model of the features, for --calibrate; of those of `describe`, its "
        "--weights",
    )
    weights_flags.add(parser)
    add(
        "--pairs",
        type=cli.path,
        help="table of another program with columns name, neighbour and similarity, "
        "instead of searching",
    )
    add(
        "--hashes",
        type=cli.path,
        help="also use perceptual hashes; *.parquet, computed if it does not exist",
    )
    add(
        "--bits",
        type=int,
        default=8,
        help="most of 64 bits by which hashes of a pair differ (default: 8)",
    )
    add("--root", type=cli.path, help="folder of the images, if features have no paths")
    add(
        "--linkage",
        choices=("component", "greedy"),
        default="component",
        help="whether images are joined by chains of pairs (the default), or only with "
        "the image that is kept",
    )
    add(
        "--keep",
        choices=("largest", "first"),
        default="largest",
        help="image that is kept: with the most pixels (the default), or the first row",
    )
    add(
        "--against",
        nargs="+",
        type=cli.path,
        default=[],
        metavar="TEST",
        help="features of test sets, each a file or folder",
    )
    add(
        "--against-threshold",
        type=cli.number,
        help="threshold for --against (default: that of pairs)",
    )
    add("--seed", type=cli.seed, default=0, help="seed of --calibrate")


def run(args: argparse.Namespace) -> None:
    """Find duplicates as the flags say and write the table.

    Args:
      args: The parsed flags.

    Raises:
      UserError: Flags or files do not fit each other.
    """
    # Imported here, so that --help and wrong flags need not wait for jax.
    from dinov2_jax.curate import duplicates, features, leaks, tables

    _check_flags(args)
    tables.check_out(args.out)
    pool = features.open_features(args.features)
    tests = [features.open_features([path]) for path in args.against]
    for test in tests:
        features.refuse_others(pool, test)
    images = _images(args, pool)
    hashes = None
    if args.hashes and args.hashes.exists():  # refuse those of other images at once
        hashes = duplicates.read_hashes(args.hashes, pool, images)
    threshold, calibration = args.threshold, None
    if args.calibrate:
        calibration, threshold = _calibrate(args, pool, images)
    pairs, hashed, twins = _pairs(args, pool, images, threshold, hashes)
    order = duplicates.order(pool, images, pairs, keep=args.keep, sizes=hashed)
    columns, counts = duplicates.table(
        pool.names, pairs, order, linkage=args.linkage, twins=twins
    )
    found = [
        leaks.find(pool, test, str(path), threshold=args.against_threshold or threshold)
        for path, test in zip(args.against, tests)
    ]
    leaks.drop(columns, counts, found)
    record = {
        "step": "dedup",
        "inputs": [one.identity() for one in (pool, *tests)],
        "parameters": {
            "threshold": threshold,
            "against_threshold": args.against_threshold or threshold,
            "pairs": args.pairs and {str(args.pairs): tables.digest(args.pairs)},
            "bits": args.bits if args.hashes else None,
            "linkage": args.linkage,
            "keep": args.keep,
        },
        "calibration": calibration,
        "counts": counts,
        "leaks": [leak.record() for leak in found],
        "seed": args.seed,
    }
    if found:
        leaks.write(args.out, found)
    tables.write(args.out, columns, record)
    _print(_summary(args, counts, found))


def _check_flags(args: argparse.Namespace) -> None:
    """Check what can be checked before files are read."""
    from dinov2_jax.curate import search, tables

    for flag in ("threshold", "against_threshold"):
        if getattr(args, flag) is not None:
            name = f"--{flag.replace('_', '-')}"
            search.check_threshold(getattr(args, flag), flag=name)
    if args.threshold is None and not args.calibrate and not args.pairs:
        raise errors.UserError(
            "a threshold depends on the model and the images: add --calibrate=500 with "
            "--model, or a --threshold that you know"
        )
    if args.calibrate and not args.model:
        raise errors.UserError(
            "--calibrate embeds changed images: add --model, the model of the features"
        )
    if args.against and args.threshold is None and not args.calibrate:
        if args.against_threshold is None:
            raise errors.UserError(
                "--against with --pairs needs a threshold: add --against-threshold"
            )
    if not 0 <= args.bits <= 16:
        raise errors.UserError(
            f"--bits={args.bits}: give 0 to 16; above 8, other images are near"
        )
    if args.hashes and not args.hashes.exists():
        tables.check_out(args.hashes, flag="--hashes")


def _images(args: argparse.Namespace, pool: Any) -> Any:
    """Return the image files, or None if nothing needs them."""
    from dinov2_jax.curate import image_files

    if not (args.calibrate or args.hashes or args.keep == "largest"):
        return None
    try:
        images = image_files.ImageFiles(pool, args.root)
        if not (args.hashes and args.hashes.exists()) or args.calibrate:
            images.check_exists()
        return images
    except errors.UserError as error:
        if args.calibrate or args.hashes:
            raise
        raise errors.UserError(f"{error}, or --keep=first") from error


def _calibrate(args, pool, images) -> tuple[dict[str, Any], float]:
    """Print what thresholds find; return the record and the threshold to use."""
    from dinov2_jax.curate import calibration

    found = calibration.calibrate(
        pool,
        images,
        calibration.make_embedder(pool, args.model, weights_flags.chosen(args)),
        count=args.calibrate,
        bits=args.bits,
        seed=args.seed,
    )
    proposed = found.proposal()
    threshold = args.threshold or proposed
    _print(found.describe(threshold))
    _print(f"proposed: --threshold={proposed:g}{found.excess(proposed)}")
    return {
        "images": len(found.strangers),
        "proposed": proposed,
        "price": found.price(threshold),
        "recall": {
            name: {"features": a, "hashes": b, "either": c}
            for name, a, b, c in found.recalls(threshold)
        },
    }, threshold


def _pairs(args, pool, images, threshold, hashes) -> tuple[Any, np.ndarray | None, Any]:
    """Return all pairs and, with hashes, the numbers of pixels and pairs by hashes."""
    from dinov2_jax.curate import duplicates, search

    if args.pairs:
        pairs = duplicates.read_pairs(args.pairs, pool.names, threshold)
    else:
        pairs = search.find_pairs(pool, threshold=threshold)
    if not args.hashes:
        return pairs, None, None
    if hashes is None:
        hashes = duplicates.read_hashes(args.hashes, pool, images)
    keys, pixels = hashes
    both, twins = duplicates.add_hashed(pairs, pool, keys, bits=args.bits)
    _print(f"{len(both) - len(pairs):,} pairs are found by hashes alone")
    return both, pixels, twins


def _summary(args: argparse.Namespace, counts: dict[str, int], found: list) -> str:
    """Return the lines for people."""
    images = counts["images"]
    lines = [
        f"{images:,} images, {counts['pairs']:,} pairs, {counts['components']:,} "
        f"components, the largest of {counts['largest']:,}",
        f"{images - counts['kept']:,} leave, {counts['kept']:,} are kept: {args.out}",
    ]
    lines += [leak.describe() for leak in found]
    chain = counts["largest"] > max(_CHAIN_SHARE * images, _CHAIN_LEAST)
    if chain and args.linkage == "component":
        lines.append(
            f"warning: the largest component has {counts['largest']:,} images, more "
            "than .1 % of all, perhaps a chain of images whose ends differ: look at it "
            "with dinov2-jax curate report, or use --linkage=greedy or a higher "
            "threshold"
        )
    return "\n".join(lines)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
