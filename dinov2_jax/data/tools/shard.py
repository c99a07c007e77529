"""`python -m dinov2_jax.data shard SRC DST`: pack images into ArrayRecord files.

DST gets `images-00000.array_record` and so on (`array_record` describes the records),
`shards.json`, which lists their contents, and `bad_images.txt`. If it is stopped,
the same command continues: a shard appears when it is complete, and the next one begins
with the image after it, so the files equal those of an uninterrupted run.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import re

import numpy as np
from PIL import Image

from dinov2_jax import cli, errors, files, progress_bar
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import array_record, base, messages
from dinov2_jax.data.tools import process_pool, program_flags, scan, shard_folder

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BAD = "bad_images.txt"
_LONGEST = 65_500  # px, of a JPEG


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the program."""
    parser.add_argument("source", metavar="SRC", help="as for --config.data.path")
    parser.add_argument(
        "destination", metavar="DST", type=cli.path, help="folder for the shards"
    )
    parser.add_argument(
        "--resize",
        type=int,
        default=0,
        metavar="SHORT_SIDE",
        help="px; larger images are shrunk to it and written as JPEG, the others are "
        "copied; default: all are copied byte for byte",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=95,
        help="of the JPEGs that --resize writes, 1 to 100; default: 95",
    )
    parser.add_argument(
        "--shard-size",
        default="1GB",
        metavar="SIZE",
        help="such as 500MB, or a number of images; default: 1GB",
    )
    program_flags.add_images(parser)
    scan.add_workers(parser)


def run(args: argparse.Namespace) -> None:
    """Write the shards that are missing."""
    scan.check_workers(args)
    if args.resize < 0:
        raise errors.UserError(f"--resize={args.resize}: give a short side in px")
    if not 1 <= args.quality <= 100:
        raise errors.UserError(f"--quality={args.quality}: give 1 to 100")
    limit = _parse_size(args.shard_size)
    array_record.module()
    decoder = program_flags.make_decoder(args)
    if args.resize and args.channels not in (1, 3):
        raise errors.UserError(
            f"--resize={args.resize} writes JPEG, which holds 1 or 3 channels, not "
            f"--channels={args.channels}: leave out --resize"
        )
    source = program_flags.open_source(args, args.source, decoder, field="SRC")
    if source.pass_length != len(source):
        raise errors.UserError(
            f"SRC = {args.source} repeats images (column `repeat`), and shards cannot "
            "store that: train on the list itself, or remove the column to pack each "
            "image once"
        )
    print(program_flags.describe(source), flush=True)
    options = {"resize": args.resize, "quality": args.quality, "shard_size": limit}
    if not args.resize:
        del options["quality"]  # not used
    options |= program_flags.decoding(decoder)
    packing = Packing(source, decoder, args.resize, args.quality)
    with shard_folder.lock(args.destination):
        destination = shard_folder.Destination(args.destination, source, options)
        if not destination.finished:
            _write_all(packing, destination, limit, args)
    print(
        f"{args.destination}: {messages.counted(destination.records, 'image')} in "
        f"{messages.counted(len(destination.shards), 'shard')}, "
        f"{len(destination.bad):,} bad ones left out"
        + (f", named in {args.destination / _BAD}" if destination.bad else "")
        + f"; train with --config.data.path={args.destination}"
    )


def _parse_size(text: str) -> tuple[int, str]:
    """Return (a number, "bytes" or "images")."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip().upper())
    unit = found[2] if found else None
    number = float(found[1]) * _UNITS.get(unit, 1) if found else 0
    if number < 1 or (not unit and number != int(number)):
        raise errors.UserError(
            f"--shard-size={text}: give a size such as 500MB or 1GB, or a number of "
            "images"
        )
    return int(number), "bytes" if unit else "images"


@dataclasses.dataclass(frozen=True)
class Packing:
    """Function from an index to the image file to pack; runs in worker processes.

    Attributes:
      source: The source.
      decoder: Decoder that must decode images without an error.
      short_side: Short side that larger images are shrunk to, px; 0 shrinks none.
      quality: JPEG quality of the shrunk images, 1 to 100.
    """

    source: base.Source
    decoder: image_decoder.Decoder
    short_side: int
    quality: int

    def __call__(self, index: int) -> bytes | image_decoder.BadImage:
        """Return the bytes of an image file, or why there are none."""
        try:
            content = self.source.content(index)
            pixels = self.decoder.decode(content, name=str(index))
        except image_decoder.BadImage as error:
            return error
        except MemoryError:
            return image_decoder.BadImage(str(index), "out of memory while reading")
        height, width = pixels.shape[:2]
        if not self.short_side or min(height, width) <= self.short_side:
            return content
        share = self.short_side / min(height, width)
        size = tuple(max(round(n * share), self.short_side) for n in (width, height))
        if max(size) > _LONGEST:
            return content
        try:
            return self._jpeg(pixels, size)
        except (OSError, MemoryError) as error:
            reason = " ".join(str(error).split()) or "out of memory"
            return image_decoder.BadImage(str(index), f"cannot be shrunk ({reason})")

    def _jpeg(self, pixels: np.ndarray, size: tuple[int, ...]) -> bytes:
        """Shrink pixels, uint8 [H, W, C], to (width, height); return a JPEG."""
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        image = image.resize(size, Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        # Full colour resolution: the source may have been subsampled already.
        image.save(stream, "JPEG", quality=self.quality, subsampling=0)
        return stream.getvalue()


def _write_all(packing, destination, limit, args) -> None:
    source, (most, unit) = packing.source, limit
    labels, label_names = source.labels, source.label_names
    start = destination.next_image
    destination.note(finished=False)
    shard = shard_folder.Shard(destination)
    results = process_pool.in_order(
        packing,
        range(start, len(source)),
        processes=args.workers,
        seconds=args.seconds,
    )
    with (
        contextlib.closing(results),
        progress_bar.Bar(len(source), what="packing", done=start) as bar,
    ):
        for index, result in results:
            bar.update()
            if isinstance(result, (image_decoder.BadImage, process_pool.Lost)):
                shard.bad.append([source.name(index), result.reason])
                continue
            label = None if labels is None else label_names[labels[index]]
            name = os.fsdecode(source.relative_path(index))
            record = array_record.pack(result, name=name, label=label)
            used = shard.bytes + len(record) if unit == "bytes" else shard.records + 1
            if shard.records and used > most:
                shard.close(stop=index)
                shard = shard_folder.Shard(destination)
            shard.add(record)
    shard.close(stop=len(source))
    if not destination.records:
        raise errors.UserError(
            f"none of the {len(source):,} images of {args.source} could be read, the "
            f"first one because: {shard.bad[0][1]}: choose others, or describe "
            "them with --channels and --value-range"
        )
    lines = [f"{_escaped(name)}\t{reason}\n" for name, reason in destination.bad]
    files.write_text(destination.path / _BAD, "".join(lines))
    destination.note(finished=True)


def _escaped(name: str) -> str:
    return name.encode("unicode_escape", "surrogateescape").decode()
