"""Images of any source as batches of equal size, decoded ahead by threads.

Threads suffice because Pillow releases the GIL while it decodes and resizes: on two
cores, two threads prepared 530 photographs of 500 px per second, two processes 515.
"""

import ast
import collections
import concurrent.futures
import dataclasses
import glob
import hashlib
import os
import re
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import preprocessing
from dinov2_jax.data.decode import image_decoder as image_decoder_lib
from dinov2_jax.data.sources import base, extensions, folder, mixture, registry
from dinov2_jax.embed import joined, shards

_BATCHES_AHEAD = 2


def open_source(path: str) -> base.Source:
    """Return the images at a path, which may be all that `data.path` takes, or one.

    Args:
      path: A folder, a pattern, a list or table, shards, or an image file; or a
        mixture as in `config.data.mixture`, each image of which comes once.

    Raises:
      UserError: There are no images.
    """
    decoder = image_decoder_lib.Decoder()
    if re.match(r"\s*[(\[]\s*[(\[]", path) and not os.path.exists(path):
        sources, _, names = registry.open_entries(_entries(path), decoder)
        return joined.JoinedSource(sources, names)
    if extensions.is_image(path) and os.path.isfile(path):
        pattern = glob.escape(path).replace("{", "[{]")
        return folder.GlobSource(pattern, decoder, field="DATA")
    source = registry.open_path(path, decoder, field="DATA")
    if isinstance(source, mixture.MixtureSource):  # several folders
        return joined.JoinedSource(source.sources, source.source_names)
    return source


def _entries(text: str) -> Sequence[Any]:
    """Parse a mixture; raises UserError."""
    try:
        entries = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        entries = ()
    if not isinstance(entries, (tuple, list)) or not entries:
        raise errors.UserError(
            f"DATA = {text} does not exist and is no mixture: write paths and weights "
            "as in data.mixture, \"(('/data/a', 3.0), ('/data/b', 1.0))\""
        )
    return entries


def root(source: base.Source) -> str | None:
    """Return the folder that paths of images are relative to; None without files."""
    if isinstance(source, shards.ShardSource):
        source = source.source
    if isinstance(source, joined.JoinedSource):
        return source.root
    return source.path if isinstance(source, folder.FilesSource) else None


def identity(source: base.Source) -> str:
    """Return a text that differs if there are other images.

    For files it has their number and a SHA-256 of names, sizes and modification times.
    """
    files_root = root(source)
    if files_root is None:
        return f"{len(source)} images, fingerprint {source.fingerprint}"
    digest = hashlib.sha256()
    root_bytes = os.fsencode(files_root)
    for index in range(len(source)):
        name = source.relative_path(index)
        try:
            status = os.stat(os.path.join(root_bytes, name))
            state = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):  # ValueError: a zero byte
            state = "unreadable"
        digest.update(name + b"\0" + state.encode() + b"\0")
    found = f"{len(source)} files, sha256 {digest.hexdigest()}"
    if isinstance(source, shards.ShardSource):  # all jobs must divide the same images
        return f"{found}, fingerprint of all {source.fingerprint}"
    return found


@dataclasses.dataclass(frozen=True)
class Batch:
    """Consecutive images.

    Attributes:
      images: uint8 [B, S, S, 3]; zeros where there is no image.
      good: bool [B], whether there is an image.
      bad: {image: reason} of the images that could not be read.
      stop: Index of the image after the last one.
    """

    images: np.ndarray
    good: np.ndarray
    bad: dict[int, str]
    stop: int


def batches(
    source: base.Source,
    prepare: preprocessing.Preprocessing,
    *,
    start: int,
    batch_size: int,
    workers: int,
) -> Generator[Batch, None, None]:
    """Yield the images from `start` on, with the last batch padded with zeros.

    Args:
      source: The images.
      prepare: Preprocessing with the resize and crop.
      start: Index of the first image.
      batch_size: Images per batch, B.
      workers: Number of threads that decode.

    Yields:
      Batches in order.
    """
    size = prepare.crop_size
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    pending: collections.deque = collections.deque()
    starts = iter(range(start, len(source), batch_size))

    def submit():
        for first in starts:
            indices = range(first, min(first + batch_size, len(source)))
            pending.append(
                (indices, [pool.submit(_read, source, prepare, i) for i in indices])
            )
            return

    try:
        for _ in range(1 + _BATCHES_AHEAD):
            submit()
        while pending:
            indices, futures = pending.popleft()
            images = np.zeros((batch_size, size, size, 3), np.uint8)
            good = np.zeros(batch_size, bool)
            bad = {}
            for slot, (index, future) in enumerate(zip(indices, futures)):
                result = future.result()
                if isinstance(result, str):
                    bad[index] = result
                else:
                    images[slot], good[slot] = result, True
            submit()
            yield Batch(images, good, bad, indices.stop)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(source, prepare, index) -> np.ndarray | str:
    """Return an image, uint8 [S, S, 3], or the reason why it cannot be used."""
    try:
        image = source.open(index).pixels()
        return preprocessing.resize_and_crop(
            image_decoder_lib.Image.fromarray(image),
            prepare.resize_size,
            prepare.crop_size,
        )
    except image_decoder_lib.BadImage as error:
        return error.reason
