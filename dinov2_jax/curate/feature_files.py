"""The kinds of features files: .npy with its names in a JSON file, and Parquet."""

import json
import os
import pathlib
from typing import Any

import numpy as np

from dinov2_jax import errors


class Npy:
    """Rows of a .npy file, mapped into memory, as groups of rows.

    Args:
      path: Path of the file.

    Attributes:
      names: Names of the images.
      paths: Their paths as bytes, or None.
      dim: Width of the features, D.
      description: Content of the JSON file beside it.
      group_rows: Number of rows of each group.
    """

    _ROWS = 65536

    def __init__(self, path: pathlib.Path):
        self.description = description(path)
        self._rows = np.load(path, mmap_mode="r")
        names = self.description.get("names")
        if names is None or len(names) != len(self._rows):
            raise errors.UserError(
                f"{path} has no names of its rows in {beside(path).name}: keep the "
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


class Parquet:
    """Rows of a Parquet file by row groups; arguments and attributes as of `Npy`."""

    def __init__(self, path: pathlib.Path):
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        schema = self._file.schema_arrow
        missing = [name for name in ("name", "features") if name not in schema.names]
        if missing:
            raise errors.UserError(
                f"{path} has no column {missing[0]}: name the --out of dinov2-jax embed"
            )
        self.description = description(path)
        if not self.description and b"dinov2_jax" in (schema.metadata or {}):
            settings = json.loads(schema.metadata[b"dinov2_jax"])
            self.description = {"settings": settings}
        metadata = self._file.metadata
        self.group_rows = [
            metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
        ]
        if sum(self.group_rows) and "string" not in str(schema.field("name").type):
            raise errors.UserError(
                f"{path}: the column name has {schema.field('name').type}, not text: "
                "write names as strings"
            )
        self._path = path
        self.names = self._column("name")
        self.paths = None
        if "path" in schema.names:
            self.paths = [os.fsencode(path) for path in self._column("path")]
        kind = schema.field("features").type
        if self.group_rows and not _holds_lists_of_numbers(kind):
            raise errors.UserError(
                f"{path}: the column features has {kind}, not lists of numbers: write "
                "one list of floats an image"
            )
        size = getattr(kind, "list_size", None)
        self.dim = size if size is not None else self._flat(0)[1]
        if self.group_rows and not self.dim:
            raise errors.UserError(
                f"{path}: the lists of `features` are empty: write one list of floats "
                "an image"
            )

    def _column(self, name: str) -> list[Any]:
        column = self._file.read(columns=[name]).column(0)
        if column.null_count:
            raise errors.UserError(
                f"{self._path}: the column {name} is null in {column.null_count:,} of "
                f"{len(column):,} rows: fill it, or leave those rows out"
            )
        return column.to_pylist()

    def _flat(self, group: int) -> tuple[np.ndarray, int]:
        """Return the values of a group in one row, and their number per image."""
        if not self.group_rows:
            return np.empty(0, np.float32), 0
        lists = self._file.read_row_group(group, columns=["features"]).column(0)
        if lists.null_count:
            raise errors.UserError(
                f"{self._path}: the column features is null in some rows: leave those "
                "images out"
            )
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


def _holds_lists_of_numbers(kind: Any) -> bool:
    from pyarrow import types

    lists = types.is_list(kind) or types.is_large_list(kind)
    if not (lists or types.is_fixed_size_list(kind)):
        return False
    value = kind.value_type
    return types.is_floating(value) or types.is_integer(value)


def open_file(path: pathlib.Path) -> Npy | Parquet:
    """Open a features file.

    Args:
      path: Path of the file.

    Raises:
      UserError: It cannot be read, or has no features of whole images.
    """
    kinds = {".npy": Npy, ".parquet": Parquet}
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


def beside(path: pathlib.Path) -> pathlib.Path:
    """Return the path of the JSON file that describes a features file."""
    return path.with_name(f"{path.name}.json")


def description(path: pathlib.Path) -> dict[str, Any]:
    """Return the content of the JSON file beside a features file; {} without one."""
    try:
        return json.loads(beside(path).read_bytes())
    except FileNotFoundError:
        return {}
