"""Features files of `dinov2-jax embed`, one or several, read as one array.

A Parquet file has a column `name`, a column `features` (lists of one length) and
perhaps a column `path` (bytes). A .npy file has its names in the JSON file beside it.
Rows are read by row groups, so that features larger than the memory can be streamed.

Shapes: N images, D width.
"""

import collections
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax import files as files_lib
from dinov2_jax.curate import feature_files

# What must agree for two features to be comparable, and its name for people.
_SAME = {
    "weights": "weights",
    "preprocessing": "preprocessing",
    "features": "kind of features",
    "normalize": "--normalize",
}


def unit(x: np.ndarray) -> np.ndarray:
    """Return float32 rows of unit length; rows of zeros stay zeros.

    Args:
      x: Features, [..., D].
    """
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Features:
    """The rows of features files in their order.

    Args:
      files: Paths of the files.

    Attributes:
      names: Names of the images, object [N] of str.
      paths: Paths of the images as bytes, [N], or None if a file has none.
      dim: Width of the features, D.
      description: Content of the JSON file beside the first file, with the settings of
        `embed`; {} if there is none.
      images: What `embed` says of the images of each file, which changes with their
        names, sizes and times; None if it says nothing.

    Raises:
      UserError: A file cannot be read, two have the same image, or their features
        cannot be compared.
    """

    def __init__(self, files: Sequence[pathlib.Path]):
        self.files = list(files)
        parts = [feature_files.open_file(path) for path in self.files]
        self.description = parts[0].description
        self.images = [
            part.description.get("settings", {}).get("images") for part in parts
        ]
        self.dim = parts[0].dim
        for path, part in zip(self.files[1:], parts[1:]):
            _compare(self.files[0], parts[0], path, part)
        self.names = np.array(
            [name for part in parts for name in part.names], dtype=object
        )
        _refuse_repeated(self.names, self.files)
        paths = [part.paths for part in parts if part.paths is not None]
        self.paths = list(itertools.chain(*paths)) if len(paths) == len(parts) else None
        self._groups = [
            (part, group) for part in parts for group in range(len(part.group_rows))
        ]
        sizes = [part.group_rows[group] for part, group in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._read_last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of names and features; the files are read for it."""
        total = hashlib.sha256()
        for path in self.files:
            for file in (path, feature_files.beside(path)):
                if file == path or path.suffix == ".npy":
                    total.update(bytes.fromhex(files_lib.sha256(file)))
        return total.hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return files, number of rows and digest, for the record of a table."""
        files = [str(path) for path in self.files]
        return {"files": files, "rows": len(self), "digest": self.digest}

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return consecutive rows, float32 [stop - start, D].

        Args:
          start: Index of the first row.
          stop: Index after the last row.

        Raises:
          UserError: A file cannot be read, or a value is not finite.
        """
        found = np.empty((stop - start, self.dim), np.float32)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for group in range(max(first, 0), len(self._groups)):
            begin, end = self._starts[group : group + 2]
            if begin >= stop:
                break
            low, high = max(start, begin), min(stop, end)
            found[low - start : high - start] = self._group(group)[
                low - begin : high - begin
            ]
        wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(wrong):
            raise errors.UserError(
                f"the features of {self.names[start + wrong[0]]!r} are not finite: "
                "embed with a model whose loss is finite, or with --dtype=float32"
            )
        return found

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return any rows, float32 [n, D]; increasing indices are read fastest.

        Args:
          rows: Indices, int [n].
        """
        found = np.empty((len(rows), self.dim), np.float32)
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for group in np.unique(groups):
            here = groups == group
            found[here] = self._group(group)[rows[here] - self._starts[group]]
        return found

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the index of the first row of each block, and its rows.

        Args:
          size: Rows per block; the last block may have fewer.
        """
        for start in range(0, len(self), size):
            yield start, self.rows(start, min(start + size, len(self)))

    def matrix(self) -> np.ndarray:
        """Return all rows, float32 [N, D]."""
        return self.rows(0, len(self))

    def _group(self, group: int) -> np.ndarray:
        """Return a row group; the last one read is kept."""
        if self._read_last is None or self._read_last[0] != group:
            part, number = self._groups[group]
            self._read_last = group, part.read(number)
        return self._read_last[1]


def open_features(paths: Sequence[str | os.PathLike]) -> Features:
    """Open features files, or folders of shards in the order of their names.

    Args:
      paths: Files written by `embed` (.parquet or .npy), or folders of .parquet files.

    Raises:
      UserError: See `Features`; or there is no such file, or a folder lacks a part.
    """
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            shards = sorted(path.glob("*.parquet"))
            if not shards:
                raise errors.UserError(
                    f"{path} has no .parquet files: name the --out of dinov2-jax embed"
                )
            _refuse_missing(path, shards)
            files += shards
        else:
            files.append(path)
    return Features(files)


def _refuse_missing(folder: pathlib.Path, shards: Sequence[pathlib.Path]) -> None:
    """Raise UserError unless all files of jobs that divided the images are there."""
    found = collections.defaultdict(set)
    for path in shards:
        settings = feature_files.description(path).get("settings", {})
        if text := settings.get("shard"):
            number, _, total = text.partition("/")
            found[int(total)].add(int(number))
    for total, numbers in found.items():
        missing = sorted(set(range(1, total + 1)) - numbers)
        if missing:
            raise errors.UserError(
                f"{folder} lacks part {missing[0]} of {total}: run that job with "
                f"--shard={missing[0]}/{total}, or name the files to use only those"
            )


def refuse_others(ours: Features, theirs: Features) -> None:
    """Check that two sets of features can be compared.

    Args:
      ours: The first features.
      theirs: The second features.

    Raises:
      UserError: Their models, preprocessing, kinds or widths differ.
    """
    _compare(ours.files[0], ours, theirs.files[0], theirs)


def _compare(first_path: Any, first: Any, path: Any, other: Any) -> None:
    """Raise UserError unless two features come from the same model."""
    if first.dim != other.dim:
        raise errors.UserError(
            f"{first_path} and {path} have {first.dim} and {other.dim} numbers an "
            "image: embed both with the same model and --features"
        )
    settings = [x.description.get("settings", {}) for x in (first, other)]
    for key, name in _SAME.items():
        if settings[0].get(key) != settings[1].get(key):
            raise errors.UserError(
                f"{first_path} and {path} differ in {name}: embed both with the same "
                "model and flags"
            )


def _refuse_repeated(names: np.ndarray, files: Sequence[pathlib.Path]) -> None:
    if len(set(names)) < len(names):
        [(name, count)] = collections.Counter(names).most_common(1)
        raise errors.UserError(
            f"{name!r} is {count} times in "
            f"{', '.join(map(str, files[:3]))}: names are keys, so embed folders with "
            "equal names from a common parent, and give each file once"
        )
