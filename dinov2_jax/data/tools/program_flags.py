"""The flags that `scan`, `shard`, `stats` and `bench` share, and their checks."""

import argparse
import dataclasses
import math
import os
import pathlib

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, registry, tfds

_MOST_SECONDS = 86_400.0  # a day; systems refuse to wait for much longer


def add_images(parser: argparse.ArgumentParser) -> None:
    """Declare the flags for reading a path and decoding its images."""
    parser.add_argument(
        "--channels", type=int, default=3, metavar="C", help="model.in_chans; default 3"
    )
    parser.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="data.value_range",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=image_decoder.PILLOWS_LIMIT,
        metavar="N",
        help="data.max_pixels: larger images are refused",
    )
    parser.add_argument(
        "--tfds-name",
        default="",
        metavar="NAME",
        help="data.tfds_name: name of a data set of tensorflow-datasets in the path",
    )
    parser.add_argument(
        "--tfds-split", default="train", metavar="SPLIT", help="data.tfds_split"
    )


def make_decoder(args: argparse.Namespace) -> image_decoder.Decoder:
    """Return the decoder that the flags of `add_images` describe.

    Raises:
      UserError: A value is invalid.
    """
    check_positive(args, "channels", "max_pixels")
    value_range = None
    if args.value_range:
        low, high = args.value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise errors.UserError(
                f"--value-range {low:g} {high:g}: LOW must be below HIGH, both finite"
            )
        value_range = low, high
    return image_decoder.Decoder(
        max_pixels=args.max_pixels, channels=args.channels, value_range=value_range
    )


def decoding(decoder: image_decoder.Decoder) -> dict:
    """Return the settings of a decoder that are not the defaults, for JSON."""
    default = dataclasses.asdict(image_decoder.Decoder())
    changed = dataclasses.asdict(decoder)
    return {name: x for name, x in changed.items() if x != default[name]}


def open_source(
    args: argparse.Namespace, path: str, decoder: image_decoder.Decoder, *, field: str
) -> base.Source:
    """Return the source at a path, or the data set of tensorflow-datasets there.

    Raises:
      UserError: There is nothing that can be read this way.
    """
    if args.tfds_name:
        return tfds.TfdsSource(
            args.tfds_name,
            args.tfds_split,
            data_dir=os.path.expanduser(path),
            decoder=decoder,
        )
    return registry.open_path(path, decoder, field=field)


def describe(source: base.Source) -> str:
    """Return the lines that describe a source and its likely problems."""
    return "\n".join(
        [source.describe(), *(f"warning: {line}" for line in source.warnings())]
    )


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise UserError if a flag is below 1."""
    for name in names:
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise errors.UserError(f"--{flag}={getattr(args, name)}: must be above 0")


def check_seconds(args: argparse.Namespace) -> None:
    """Raise UserError unless `--seconds` is above 0 and at most a day."""
    if not 0 < args.seconds <= _MOST_SECONDS:  # or it is NaN
        raise errors.UserError(
            f"--seconds={args.seconds:g}: give more than 0 and at most "
            f"{_MOST_SECONDS:g}, a day"
        )


def check_json(path: pathlib.Path | None) -> None:
    """Raise UserError if the JSON file cannot be created."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise errors.UserError(
            f"--json={path}: there is no folder {folder}: create it first"
        )
    if path.is_dir():
        raise errors.UserError(f"--json={path} is a folder: name a file in it")
    if not os.access(folder, os.W_OK):
        raise errors.UserError(
            f"--json={path}: {folder} cannot be written to: name another folder"
        )
