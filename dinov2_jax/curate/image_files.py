"""The image files that features were computed from."""

import collections
import concurrent.futures
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from dinov2_jax import errors, progress_bar
from dinov2_jax.curate import features as features_lib
from dinov2_jax.curate import hashes, named_files
from dinov2_jax.data.decode import image_decoder

_Result = TypeVar("_Result")
_ENOUGH = 256  # px of the short side from which a hash is computed
_LOOKED_AT = 100  # evenly spaced paths, of which at least one must exist
_AHEAD = 4  # images that are begun before they are asked for, a thread


class ImageFiles:
    """Images by the row of their features.

    Args:
      features: The features.
      root: Folder below which the images are, if the features have no paths.

    Raises:
      UserError: The features have no paths and no root is given.
    """

    def __init__(
        self, features: features_lib.Features, root: str | os.PathLike | None = None
    ):
        self.names = features.names
        if root is not None:
            self._paths: Sequence[bytes] = [
                named_files.path(root, name) for name in features.names
            ]
        elif features.paths is not None:
            self._paths = features.paths
        else:
            raise errors.UserError(
                f"{features.files[0]} has no paths of the images: add --root, the "
                "folder that was embedded"
            )
        self._decoder = image_decoder.Decoder()

    def check_exists(self) -> None:
        """Raise UserError if none of some evenly spaced images exists."""
        rows = np.linspace(0, len(self._paths) - 1, _LOOKED_AT).astype(int)
        some = [os.fsdecode(self._paths[row]) for row in np.unique(rows)]
        if not any(map(os.path.exists, some)):
            raise errors.UserError(
                f"{some[0]} does not exist, nor does any other of the {len(some):,} "
                "images looked at: add --root, the folder that was embedded"
            )

    def open(self, row: int) -> image_decoder.OpenedImage:
        """Open an image; raises `BadImage`."""
        return self._decoder.open(
            os.fsdecode(self._paths[row]), name=str(self.names[row])
        )

    def hashes_and_size(self, row: int) -> tuple[np.ndarray, int]:
        """Return the hashes of an image, uint64 [2], and its number of pixels.

        Raises:
          BadImage: It cannot be read.
        """
        opened = self.open(row)
        short = min(opened.width, opened.height)
        reduce = next((r for r in (8, 4, 2) if short >= r * _ENOUGH), 1)
        found = hashes.image_hashes(np.asarray(opened.pixels(reduce)))
        return found, opened.width * opened.height

    def size(self, row: int) -> int:
        """Return the number of pixels of an image; raises `BadImage`."""
        path = os.fsdecode(self._paths[row])
        width, height = self._decoder.size(path, name=str(self.names[row]))
        return width * height


def refuse_repeated(source: Any) -> None:
    """Raise UserError if two images have the same name, the key of all tables.

    Args:
      source: A `data.sources.base.Source`.
    """
    seen: set[bytes] = set()
    for index in range(len(source)):
        name = source.relative_path(index)
        if name in seen:
            raise errors.UserError(
                f"{os.fsdecode(name)!r} is listed twice: names are keys, so list each "
                "image once"
            )
        seen.add(name)


class Readable:
    """The results of a function of images, (row, result) of those that can be read.

    Args:
      function: Function of a row; it may raise `BadImage`.
      rows: The rows.
      what: What is done, for the progress bar.
    """

    def __init__(
        self, function: Callable[[int], Any], rows: Sequence[int], *, what: str
    ):
        self._function, self._rows, self._what = function, rows, what
        self._bad: list[image_decoder.BadImage] = []

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        results = in_threads(self._function, self._rows, what=self._what)
        for row, result in zip(self._rows, results):
            if isinstance(result, image_decoder.BadImage):
                self._bad.append(result)
            else:
                yield int(row), result

    def warn(self, *, without: str) -> None:
        """Print how many images could not be read.

        Args:
          without: What those have.

        Raises:
          UserError: None could be read.
        """
        if not self._bad:
            return
        example = f"such as {self._bad[0]}"
        if len(self._bad) == len(self._rows):
            raise errors.UserError(
                f"none of {len(self._rows):,} images can be read, {example}: add "
                "--root, the folder that was embedded"
            )
        print(
            f"warning: {len(self._bad):,} of {len(self._rows):,} images cannot be "
            f"read and have {without}, {example}",
            file=sys.stderr,
        )


def in_threads(
    function: Callable[[int], _Result], rows: Sequence[int] | np.ndarray, *, what: str
) -> Iterator[_Result | image_decoder.BadImage]:
    """Yield the results of a function of images, in their order, or why one failed.

    Args:
      function: Function of a row; it may raise `BadImage`.
      rows: The rows.
      what: What is done, for the progress bar.
    """

    def call(row: Any) -> _Result | image_decoder.BadImage:
        try:
            return function(int(row))
        except image_decoder.BadImage as error:
            return error

    workers = os.cpu_count() or 1
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    ahead = _AHEAD * workers  # so that results of unread rows do not fill the memory
    begun: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        with progress_bar.Bar(len(rows), what=what, delay=2.0) as bar:
            for at in range(len(rows) + ahead):
                if at < len(rows):
                    begun.append(pool.submit(call, rows[at]))
                if at >= ahead and begun:
                    yield begun.popleft().result()
                    bar.update()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
