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
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors

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

    Raises:
      UserError: A file cannot be read, two have the same image, or their features
        cannot be compared.
    """

    def __init__(self, files: Sequence[pathlib.Path]):
        self.files = list(files)
        parts = [_open(path) for path in self.files]
        self.description = parts[0].description
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
            for file in (path, _beside(path)):
                if file == path or path.suffix == ".npy":
                    with open(file, "rb") as opened:
                        total.update(hashlib.file_digest(opened, "sha256").digest())
        return total.hexdigest()

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
      UserError: See `Features`; or there is no such file.
    """
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            shards = sorted(path.glob("*.parquet"))
            if not shards:
                raise errors.UserError(
                    f"{path} has no .parquet files: name the --out of dinov2-jax embed"
                )
            files += shards
        else:
            files.append(path)
    return Features(files)


def refuse_others(ours: Features, theirs: Features) -> None:
    """Check that two sets of features can be compared.

    Args:
      ours: The first features.
      theirs: The second features.

    Raises:
      UserError: Their models, preprocessing, kinds or widths differ.
    """
    _compare(ours.files[0], ours, theirs.files[0], theirs)


class _Npy:
    """Rows of a .npy file, mapped into memory, as groups of rows."""

    _ROWS = 65536

    def __init__(self, path: pathlib.Path):
        self.description = _description(path)
        self._rows = np.load(path, mmap_mode="r")
        names = self.description.get("names")
        if names is None or len(names) != len(self._rows):
            raise errors.UserError(
                f"{path} has no names of its rows in {_beside(path).name}: keep the "
                "two files of dinov2-jax embed together"
            )
        if self._rows.ndim != 2:
            raise errors.UserError(
                f"{path} has {self._rows.ndim} dimensions: embed with --features=cls "
                "or another kind of one row an image"
            )
        # As the names of a Parquet file.
        encoded = [os.fsencode(name) for name in names]
        self.names = [name.decode("utf-8", "backslashreplace") for name in encoded]
        root = self.description.get("root")
        self.paths = None
        if root is not None:
            self.paths = [os.path.join(os.fsencode(root), name) for name in encoded]
        self.dim = self._rows.shape[1]
        starts = range(0, len(self._rows), self._ROWS)
        self.group_rows = [min(self._ROWS, len(self._rows) - i) for i in starts]

    def read(self, group: int) -> np.ndarray:
        """Return a group of rows, [n, D]."""
        return self._rows[group * self._ROWS : (group + 1) * self._ROWS]


class _Parquet:
    """Rows of a Parquet file by row groups."""

    def __init__(self, path: pathlib.Path):
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        schema = self._file.schema_arrow
        missing = [name for name in ("name", "features") if name not in schema.names]
        if missing:
            raise errors.UserError(
                f"{path} has no column {missing[0]}: name the --out of dinov2-jax embed"
            )
        self.description = _description(path)
        if not self.description and b"dinov2_jax" in (schema.metadata or {}):
            settings = json.loads(schema.metadata[b"dinov2_jax"])
            self.description = {"settings": settings}
        metadata = self._file.metadata
        self.group_rows = [
            metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
        ]
        self.names = self._column("name")
        self.paths = None
        if "path" in schema.names:
            self.paths = [os.fsencode(path) for path in self._column("path")]
        self._path = path
        kind = schema.field("features").type
        size = getattr(kind, "list_size", None)
        self.dim = size if size is not None else self._flat(0)[1]

    def _column(self, name: str) -> list[Any]:
        return self._file.read(columns=[name]).column(0).to_pylist()

    def _flat(self, group: int) -> tuple[np.ndarray, int]:
        """Return the values of a group in one row, and their number per image."""
        if not self.group_rows:
            return np.empty(0, np.float32), 0
        lists = self._file.read_row_group(group, columns=["features"]).column(0)
        values = np.concatenate(
            [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in lists.chunks]
        )
        return values, len(values) // max(self.group_rows[group], 1)

    def read(self, group: int) -> np.ndarray:
        """Return a group of rows, [n, D]."""
        values, _ = self._flat(group)
        if len(values) != self.group_rows[group] * self.dim:
            raise errors.UserError(
                f"{self._path}: the lists of `features` are not all {self.dim} long: "
                "name the --out of dinov2-jax embed"
            )
        return values.reshape(-1, self.dim)


def _open(path: pathlib.Path) -> _Npy | _Parquet:
    kinds = {".npy": _Npy, ".parquet": _Parquet}
    if path.suffix not in kinds:
        raise errors.UserError(
            f"{path} is no features file: name the --out of dinov2-jax embed, .parquet "
            "or .npy"
        )
    if not path.is_file():
        raise errors.UserError(
            f"{path} does not exist: write it with dinov2-jax embed --out={path}"
        )
    try:
        part = kinds[path.suffix](path)
    except (OSError, ValueError) as error:  # pyarrow's errors are the latter
        raise errors.UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): write it again "
            "with dinov2-jax embed"
        ) from error
    if not part.names:
        raise errors.UserError(f"{path} has no rows: embed a folder that has images")
    if part.description.get("settings", {}).get("features") == "patches":
        raise errors.UserError(
            f"{path} has features of patches: embed with --features=cls, or another "
            "kind of one row an image"
        )
    return part


def _beside(path: pathlib.Path) -> pathlib.Path:
    """Return the path of the JSON file that describes a features file."""
    return path.with_name(f"{path.name}.json")


def _description(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(_beside(path).read_bytes())
    except FileNotFoundError:
        return {}


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
