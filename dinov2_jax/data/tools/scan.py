"""`python -m dinov2_jax.data scan PATH`: what is in a data set, and what is broken."""

import argparse
import collections
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import tqdm

from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import messages, registry
from dinov2_jax.data.tools import examination, process_pool, program_flags

_SHOWN = 10  # lines of a list in the table; the JSON has all


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of the program."""
    parser.add_argument("path", help="what --config.data.path takes")
    parser.add_argument(
        "--json", type=pathlib.Path, metavar="OUT", help="write all that was found"
    )
    program_flags.add_images(parser)
    add_workers(parser)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Declares the flags on processes that decode."""
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that decode; default: one a core",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="after which an image counts as bad; default: 120",
    )


def check_workers(args: argparse.Namespace) -> None:
    """Raises `UserError` where those flags make no sense."""
    program_flags.check_positive(args, "workers")
    program_flags.check_seconds(args)


def run(args: argparse.Namespace) -> None:
    """Reads every image, prints a table and writes the JSON."""
    check_workers(args)
    program_flags.check_json(args.json)
    decoder = program_flags.make_decoder(args)
    source = program_flags.open_source(args, args.path, decoder, field="PATH")
    print(source.describe(), flush=True)
    report = scan(source, decoder, workers=args.workers, seconds=args.seconds)
    print(table(report))
    if args.json:
        temporary = args.json.with_name(f"{args.json.name}.tmp")
        temporary.write_text(json.dumps({"path": args.path} | report, indent=1) + "\n")
        temporary.replace(args.json)
        print(f"all of it is in {args.json}")


def scan(
    source: registry.Source,
    decoder: image_decoder.Decoder,
    *,
    workers: int,
    seconds: float = 120.0,
) -> dict[str, Any]:
    """Reads and decodes every image of a source.

    Args:
      source: Of the images.
      decoder: With which they have to be decoded without an error.
      workers: Processes; 0 decodes here.
      seconds: After which an image is given up.

    Returns:
      What the JSON has; see `docs/data.md`.
    """
    count = len(source)
    sizes = np.zeros((count, 3), np.int64)  # width, height, bytes
    digests = np.zeros((count, 16), np.uint8)
    good = np.zeros(count, bool)
    formats: collections.Counter = collections.Counter()
    modes: collections.Counter = collections.Counter()
    bad = []
    work = examination.Examine(source, decoder)
    results = process_pool.in_order(
        work, range(count), processes=workers, seconds=seconds
    )
    with progress(count, "scanning") as bar:
        for index, result in results:
            bar.update()
            if isinstance(result, process_pool.Lost):
                result = examination.Examined(result.reason)
            sizes[index] = result.width, result.height, result.size
            if result.digest:
                digests[index] = np.frombuffer(result.digest, np.uint8)
            if result.format:
                formats[result.format] += 1
                modes[result.mode] += 1
            good[index] = not result.reason
            if result.reason:
                bad.append({"name": source.name(index), "reason": result.reason})
    width, height = sizes[good, 0], sizes[good, 1]
    duplicates = [
        [source.name(int(index)) for index in group] for group in _equal(digests, good)
    ]
    report = {
        "images": count,
        "good": int(good.sum()),
        "bytes": int(sizes[:, 2].sum()),
        "width": _spread(width),
        "height": _spread(height),
        "shorter_side": _spread(np.minimum(width, height)),
        "longer_side": _spread(np.maximum(width, height)),
        "megapixels": _spread(width * height / 1e6),
        "formats": dict(formats.most_common()),
        "modes": dict(modes.most_common()),
        "duplicate_groups": len(duplicates),
        "duplicate_images": sum(len(group) - 1 for group in duplicates),
        "duplicates": duplicates,
        "bad_images": bad,
        "skipped": _skipped(source),
        "fingerprint": source.fingerprint,
    }
    return report


def progress(total: int, what: str) -> tqdm.tqdm:
    """A bar on a terminal, on standard error."""
    return tqdm.tqdm(
        total=total, desc=what, unit=" images", disable=not sys.stderr.isatty()
    )


def _skipped(source: Any) -> list[dict[str, str]]:
    if not hasattr(source, "skipped_names"):
        return []
    return [{"name": name, "reason": why} for name, why in source.skipped_names()]


def _equal(digests: np.ndarray, good: np.ndarray) -> list[np.ndarray]:
    """Groups of the good images with the same bytes, in the order of their first."""
    indices = np.flatnonzero(good)
    if not len(indices):
        return []
    keys = np.ascontiguousarray(digests[indices]).view("V16").ravel()
    order = np.argsort(keys, kind="stable")
    changes = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    groups = np.split(indices[order], changes)
    return sorted((g for g in groups if len(g) > 1), key=lambda group: group[0])


def _spread(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    named = zip(
        ("min", "median", "max"), (values.min(), np.median(values), values.max())
    )
    return {name: round(float(value), 4) for name, value in named}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"images       {report['images']:,}, {report['good']:,} of them good, "
        f"{report['bytes'] / 1e6:,.1f} MB"
    ]
    for name, unit in (
        ("shorter_side", "px"),
        ("longer_side", "px"),
        ("megapixels", "MP"),
    ):
        spread = report[name]
        if spread:
            numbers = ", ".join(f"{k} {v:,g}" for k, v in spread.items())
            lines.append(f"{name.replace('_', ' '):<12} {numbers} {unit}")
    for name in ("formats", "modes"):
        counts = ", ".join(f"{k} {v:,}" for k, v in report[name].items())
        lines.append(f"{name:<12} {counts or 'none'}")
    lines.append(
        f"duplicates   {report['duplicate_images']:,} more than needed, in "
        f"{messages.counted(report['duplicate_groups'], 'group')} of equal files"
    )
    for group in report["duplicates"][:_SHOWN]:
        lines.append(f"  {_printable(' = '.join(group[:4]))}")
    lines += _more(report["duplicates"])
    for what, entries in (
        ("bad images", report["bad_images"]),
        ("skipped", report["skipped"]),
    ):
        lines.append(f"{what:<12} {len(entries):,}")
        for entry in entries[:_SHOWN]:
            lines.append(f"  {_printable(entry['name'])}: {entry['reason']}")
        lines += _more(entries)
    return "\n".join(lines)


def _more(entries: list) -> list[str]:
    left = len(entries) - _SHOWN
    return [f"  and {left:,} more, see --json"] if left > 0 else []


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
