"""`python -m dinov2_jax.data bench`: images per second, stage by stage.

Measures how fast this machine prepares images for training, with augmentation on the
host and on the device (`data.augmentation`), next to the reference's transforms if
torch is installed, and names the bottleneck. Without a path it generates JPEGs.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax import cli, errors, files, progress_bar
from dinov2_jax.data.sources import photos
from dinov2_jax.data.tools import program_flags, throughput

_MOST_BYTES = (
    2**26
)  # largest allowed size of an image's crops, bytes; a batch has 32 images
_MADE_CHANNELS = (1, 3)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the program."""
    parser.add_argument(
        "path", nargs="?", help="as for --config.data.path; default: generated JPEGs"
    )
    parser.add_argument(
        "--images", type=int, default=2000, metavar="N", help="to make; default: 2000"
    )
    for field in dataclasses.fields(throughput.Sizes):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int,
            default=field.default,
            metavar="N",
            help=f"default: {field.default}",
        )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes; default: one a core",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="of turns; default: 5"
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="a turn; default: 3"
    )
    parser.add_argument(
        "--json", type=cli.path, metavar="OUT", help="write all measurements"
    )
    program_flags.add_images(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, and print the table and the bottleneck."""
    program_flags.check_positive(args, "images", "local_size", "workers", "rounds")
    program_flags.check_seconds(args)
    program_flags.check_json(args.json)
    decoder = program_flags.make_decoder(args)
    sizes = throughput.Sizes(args.global_size, args.local_size, args.num_local)
    _check_sizes(sizes, args.channels)
    if args.path is None and args.channels not in _MADE_CHANNELS:
        raise errors.UserError(
            f"--channels={args.channels}: the generated JPEGs have 1 or 3: name a PATH"
        )
    with tempfile.TemporaryDirectory() as made:
        path = args.path
        if path is None:
            path = made
            make_jpegs(pathlib.Path(made), args.images)
        source = program_flags.open_source(args, path, decoder, field="PATH")
        print(program_flags.describe(source), flush=True)
        found = throughput.measure(
            source,
            sizes,
            workers=args.workers,
            rounds=args.rounds,
            seconds=args.seconds,
            channels=args.channels,
        )
    print(table(found))
    if args.json:
        files.write_text(args.json, json.dumps(found, indent=1) + "\n")


def _check_sizes(sizes: throughput.Sizes, channels: int) -> None:
    if sizes.global_size < throughput.PATCH:
        raise errors.UserError(
            f"--global-size={sizes.global_size}: give {throughput.PATCH} px, a patch, "
            "or more"
        )
    if sizes.num_local < 0:
        raise errors.UserError(f"--num-local={sizes.num_local}: give 0 or more")
    size = sizes.crop_bytes(channels)
    if size > _MOST_BYTES:
        raise errors.UserError(
            f"--global-size={sizes.global_size}, --local-size={sizes.local_size} and "
            f"--num-local={sizes.num_local} make crops of {size / 1e6:,.0f} MB an image"
            f": give smaller ones, {_MOST_BYTES / 1e6:.0f} MB together"
        )


def make_jpegs(folder: pathlib.Path, count: int) -> None:
    """Write parts of photographs as JPEGs as large as ImageNet's, 500 px long."""
    photographs = photos.load_photographs()
    rng = np.random.default_rng(0)
    for i in progress_bar.track(range(count), what="generating JPEGs"):
        image = Image.fromarray(photographs[i % len(photographs)])
        width, height = (int(n * rng.uniform(0.7, 1.0)) for n in image.size)
        left = int(rng.integers(0, image.width - width + 1))
        top = int(rng.integers(0, image.height - height + 1))
        image = image.crop((left, top, left + width, top + height))
        scale = 500 / max(image.size)
        size = tuple(max(round(n * scale), 1) for n in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
        image.save(folder / f"{i:06}.jpg", quality=90)


def table(found: dict[str, Any]) -> str:
    """Format the measurements as a table."""
    lines = ["", "stage, one process".ljust(34) + "ms an image".rjust(12)]
    for name, value in found["stages"].items():
        lines.append(f"  {name}".ljust(34) + f"{value:.2f}".rjust(12))
    head = f"{found['workers']} processes"
    lines += ["", head.ljust(34) + "images/s".rjust(12) + "low to high".rjust(18)]
    lines[-1] += "times the reference".rjust(22)
    about = {
        "reference": "reference's transforms",
        "host": "data.augmentation=host",
        "split": "data.augmentation=device",
    }
    for name, values in found["images_per_second"].items():
        ratio = found["ratios"].get(name)
        spread = f"{min(values):.0f} to {max(values):.0f}"
        lines.append(
            f"  {about.get(name, name)}".ljust(34)
            + f"{statistics.median(values):.1f}".rjust(12)
            + spread.rjust(18)
            + (f"{ratio:.2f}".rjust(22) if ratio else "")
        )
    if found["missing"]:
        lines.append(f"  (the reference's transforms need {found['missing']})")
    return "\n".join([*lines, "", f"bottleneck: {found['bottleneck']}"])
