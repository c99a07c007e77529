"""Mean and deviation of each channel, for `data.mean` and `data.std`.

    python -m dinov2_jax.data stats PATH --channels 13

reads a random sample of the images and prints the two flags to paste. Every pixel
counts equally, as stored; values are in [0, 1].
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator

import numpy as np

from dinov2_jax import cli, errors, progress_bar
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base
from dinov2_jax.data.tools import program_flags

_SHOWN = 10  # bad images listed by name; the JSON has all
_AHEAD = 2  # images in progress or waiting, per thread


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Pixel statistics of a sample of images.

    Attributes:
      counts: int64 [C, 256], how many pixels of each channel have each value.
      images: Number of images that were read.
      skipped: {name: reason} of images that could not be read.
    """

    counts: np.ndarray
    images: int
    skipped: dict[str, str]

    @property
    def mean(self) -> list[float]:
        """Mean of each channel, for values in [0, 1]."""
        return [_moment(row, 1) / _moment(row, 0) / 255 for row in self.counts]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, over all pixels of the sample."""
        return [_deviation(row) for row in self.counts]

    def flags(self) -> str:
        """Return the training flags that set them."""
        mean, std = _tuple(self.mean), _tuple(self.std)
        return f"--config.data.mean='{mean}' --config.data.std='{std}'"


def _tuple(values: list[float]) -> str:
    """Format a tuple without blanks, with the comma that one value needs."""
    return "(" + "".join(f"{value:.6g}," for value in values) + ")"


def _moment(counts: np.ndarray, power: int) -> int:
    """Return the exact sum of value**power over any number of pixels."""
    return sum(int(n) * value**power for value, n in enumerate(counts))


def _deviation(counts: np.ndarray) -> float:
    n, first, second = (_moment(counts, power) for power in range(3))
    return (n * second - first**2) ** 0.5 / n / 255  # integers up to the root


def gather(
    source: base.Source,
    indices: Iterable[int],
    *,
    channels: int,
    workers: int,
) -> Statistics:
    """Read images and count their values.

    Args:
      source: The images.
      indices: Indices of the images to read.
      channels: Number of channels of the source, C.
      workers: Number of threads that decode; Pillow releases the GIL.
    """
    total = np.zeros((channels, 256), np.int64)
    read, skipped = 0, {}
    for name, result in _in_threads(lambda i: _count(source, i), indices, workers):
        if isinstance(result, str):
            skipped[name] = result
        else:
            total += result
            read += 1
    return Statistics(total, read, skipped)


def _count(source: base.Source, index: int) -> tuple[str, np.ndarray | str]:
    """Return an image's name, and int64 [C, 256] or why it is bad."""
    try:
        pixels = source.open(index).pixels()
    except image_decoder.BadImage as error:
        return error.name, error.reason
    flat = pixels.reshape(-1, pixels.shape[-1])
    counts = [np.bincount(channel, minlength=256) for channel in flat.T]
    return source.name(index), np.stack(counts)


def _in_threads(function, items: Iterable, workers: int) -> Iterator:
    """Map a function over items with threads that run only a little ahead."""
    pending: collections.deque = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def sample(length: int, max_images: int, seed: int) -> np.ndarray:
    """Return sorted indices of at most `max_images` of `length` images; 0: all."""
    if not 0 < max_images < length:
        return np.arange(length)
    chosen = np.random.default_rng(seed).choice(length, max_images, replace=False)
    return np.sort(chosen)  # in the order on the disk


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the program."""
    parser.add_argument("path", help="as for --config.data.path")
    program_flags.add_images(parser)
    parser.add_argument(
        "--max-images", type=int, default=10_000, help="of the random sample; 0: all"
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="of the random sample")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="threads"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def run(args: argparse.Namespace) -> None:
    """Read a sample of the images and print the flags, or JSON."""
    program_flags.check_positive(args, "workers")
    if args.max_images < 0:
        raise errors.UserError(f"--max-images={args.max_images}: give 0 or more")
    decoder = program_flags.make_decoder(args)
    source = program_flags.open_source(args, args.path, decoder, field="PATH")
    for line in source.warnings():
        print(f"warning: {line}", file=sys.stderr)
    indices = sample(len(source), args.max_images, args.seed)
    chosen = progress_bar.track(indices, what="counting")
    found = gather(source, chosen, channels=args.channels, workers=args.workers)
    for name in list(found.skipped)[:_SHOWN]:
        print(f"skipped {name}: {found.skipped[name]}", file=sys.stderr)
    if len(found.skipped) > _SHOWN:
        more = len(found.skipped) - _SHOWN
        print(f"skipped {more} more; --json names them", file=sys.stderr)
    if not found.images:
        raise errors.UserError(
            f"none of {len(indices)} images of {args.path} could be read, for example "
            f"{': '.join(next(iter(found.skipped.items())))}"
        )
    if args.json:
        facts = dict(
            images=found.images,
            pixels=int(found.counts[0].sum()),
            mean=found.mean,
            std=found.std,
            skipped=found.skipped,
        )
        print(json.dumps(facts))
        return
    print(
        f"{found.images} of {len(source)} images, {len(found.skipped)} skipped",
        file=sys.stderr,
    )
    print(found.flags())
