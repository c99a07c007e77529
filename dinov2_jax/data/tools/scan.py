"""`python -m dinov2_jax.data scan PATH`: content and bad files of a data set."""

import argparse
import collections
import dataclasses
import hashlib
import io
import json
import os
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax import cli, files, progress_bar
from dinov2_jax.data.decode import (
    file_kinds,
    image_decoder,
    npy_file,
    tiff_header,
    value_use,
)
from dinov2_jax.data.sources import base, extensions, messages
from dinov2_jax.data.tools import process_pool, program_flags

_FORMATS = {  # of what other libraries read
    file_kinds.HEIC: "HEIC",
    file_kinds.AVIF: "AVIF",
    file_kinds.JPEG_XL: "JPEG XL",
    file_kinds.DICOM: "DICOM",
    file_kinds.JPEG_2000: "JPEG2000",
    file_kinds.TGA: "TGA",
}
_SHOWN = 10  # lines of a list in the table; the JSON has all


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the program."""
    parser.add_argument("path", help="as for --config.data.path")
    parser.add_argument(
        "--json", type=cli.path, metavar="OUT", help="write the full report"
    )
    program_flags.add_images(parser)
    add_workers(parser)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the decoding processes."""
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
    """Raise UserError if the flags of `add_workers` are invalid."""
    program_flags.check_positive(args, "workers")
    program_flags.check_seconds(args)


def run(args: argparse.Namespace) -> None:
    """Read every image, print a table and write the JSON."""
    check_workers(args)
    program_flags.check_json(args.json)
    decoder = program_flags.make_decoder(args)
    source = program_flags.open_source(args, args.path, decoder, field="PATH")
    print(program_flags.describe(source), flush=True)
    report = scan(source, decoder, workers=args.workers, seconds=args.seconds)
    print(table(report))
    if args.json:
        text = json.dumps({"path": args.path} | report, indent=1)
        files.write_text(args.json, text + "\n")
        print(messages.printable(f"the full report is in {args.json}"))


def scan(
    source: base.Source,
    decoder: image_decoder.Decoder,
    *,
    workers: int,
    seconds: float = 120.0,
) -> dict[str, Any]:
    """Read and decode every image of a source.

    Args:
      source: Source of the images.
      decoder: Decoder that must decode them without an error.
      workers: Number of processes; 0 decodes in this one.
      seconds: Time limit for an image.

    Returns:
      The content of the JSON; see `docs/data.md`.
    """
    count = len(source)
    sizes = np.zeros((count, 3), np.int64)  # width, height, bytes
    digests = np.zeros((count, 16), np.uint8)
    good = np.zeros(count, bool)
    formats: collections.Counter = collections.Counter()
    modes: collections.Counter = collections.Counter()
    bad, uses = [], []
    work = Examine(source, decoder)
    results = process_pool.in_order(
        work, range(count), processes=workers, seconds=seconds
    )
    with progress_bar.Bar(count, what="scanning") as bar:
        for index, result in results:
            bar.update()
            if isinstance(result, process_pool.Lost):
                result = Examined(result.reason)
            sizes[index] = result.width, result.height, result.size
            if result.digest:
                digests[index] = np.frombuffer(result.digest, np.uint8)
            if result.format:
                formats[result.format] += 1
                modes[result.mode] += 1
            good[index] = not result.reason
            uses += [] if result.reason else [result.use]
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
        "value_range": value_use.describe(uses, decoder.value_range),
        "skipped": [
            {"name": name, "reason": why} for name, why in source.skipped_names()
        ],
        "left_out": source.left_out(),
        "fingerprint": source.fingerprint,
    }
    return report


def _equal(digests: np.ndarray, good: np.ndarray) -> list[np.ndarray]:
    """Return groups of good images with the same bytes, by their first image."""
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
    """Format the report as a table."""
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
        f"duplicates   {report['duplicate_images']:,} redundant, in "
        f"{messages.counted(report['duplicate_groups'], 'group')} of equal files"
    )
    for group in report["duplicates"][:_SHOWN]:
        lines.append(f"  {messages.printable(' = '.join(group[:4]))}")
    lines += _more(report["duplicates"])
    for what, entries in (
        ("bad images", report["bad_images"]),
        ("skipped", report["skipped"]),
    ):
        lines.append(f"{what:<12} {len(entries):,}")
        for entry in entries[:_SHOWN]:
            lines.append(f"  {messages.printable(entry['name'])}: {entry['reason']}")
        lines += _more(entries)
    lines.append(f"{'left out':<12} {extensions.counts(report['left_out']) or 'none'}")
    lines += [f"value range  {line}" for line in report["value_range"]]
    return "\n".join(lines)


def _more(entries: list) -> list[str]:
    left = len(entries) - _SHOWN
    return [f"  and {left:,} more, see --json"] if left > 0 else []


@dataclasses.dataclass(frozen=True)
class Examined:
    """The result of examining an image.

    Attributes:
      reason: The reason why it cannot be used; "" if it can.
      format: File format, such as JPEG; "" if unknown.
      mode: Pillow's colour mode, or for example "13 channels"; "" if unknown.
      width: Width in px; 0 if unknown.
      height: Height in px; 0 if unknown.
      size: Size of the file in bytes.
      digest: First 16 bytes of the file's SHA-256; b"" if it could not be read.
      use: Use of the range of its values.
    """

    reason: str
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    size: int = 0
    digest: bytes = b""
    use: value_use.RangeUse = value_use.RangeUse()


@dataclasses.dataclass(frozen=True)
class Examine:
    """Function that examines an image of a source, given its index.

    Attributes:
      source: The source.
      decoder: Decoder that must decode images without an error.
    """

    source: base.Source
    decoder: image_decoder.Decoder

    def __call__(self, index: int) -> Examined:
        """Read and decode an image; never raises for a bad one."""
        try:
            content = self.source.content(index)
        except image_decoder.BadImage as error:
            return Examined(error.reason)
        except MemoryError:
            return Examined("out of memory while reading")
        found: dict[str, Any] = dict(
            size=len(content), digest=hashlib.sha256(content).digest()[:16]
        )
        try:
            with Image.open(io.BytesIO(content)) as image:
                found |= dict(format=image.format or "", mode=image.mode)
                found |= dict(width=image.width, height=image.height)
        except Exception:  # Pillow raises almost anything; the decoder reports it below
            pass
        try:
            opened = self.decoder.open(content, name="")
            pixels = opened.pixels()
        except image_decoder.BadImage as error:
            return Examined(error.reason, **found)
        if "format" not in found:  # a format that only the decoder reads
            height, width, channels = pixels.shape
            found |= dict(format=_format(content), width=width, height=height)
            found |= dict(mode=f"{channels} channels")
        use = value_use.examine(opened, pixels, self.decoder.value_range)
        return Examined("", **found, use=use)


def _format(content: bytes) -> str:
    """Return the name of a format that Pillow alone does not read."""
    if content.startswith(npy_file.MAGIC):
        return "NPY"
    if content.startswith(tiff_header.MAGIC):
        return "TIFF"
    kind = file_kinds.name_kind(content[: file_kinds.HEAD])
    return _FORMATS.get(kind[0], "other") if kind else "other"
