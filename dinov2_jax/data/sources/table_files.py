"""Parquet and Arrow files that hold images: their columns and groups of rows."""

import json
import os
import re
from typing import Any

from dinov2_jax.data.sources import extensions

EXTENSION = re.compile(r"\.(parquet|arrow)$", re.IGNORECASE)
_IMAGE_COLUMNS = ("image", "img", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp")
_LONGEST_PATH = 4096  # bytes
_LABEL_COLUMNS = ("label", "labels", "class", "cls")


def image_column(schema: Any) -> str | None:
    """Return the column of image files in a schema, or None."""
    import pyarrow

    def is_bytes(kind: Any) -> bool:
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    for field in schema:
        if pyarrow.types.is_struct(field.type):
            at = field.type.get_field_index("bytes")
            if at >= 0 and is_bytes(field.type.field(at).type):
                return field.name
    for name in _IMAGE_COLUMNS:
        at = schema.get_field_index(name)
        if at >= 0 and is_bytes(schema.field(at).type):
            return name
    return None


def label_column(schema: Any) -> tuple[str | None, list[str]]:
    """Return the column of labels, or None, and the names that its numbers stand for.

    Without such names the column's values are the labels.
    """
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        features = metadata["info"]["features"]
        classes = {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        classes = {}
    classes = {name: names for name, names in classes.items() if name in schema.names}
    for name in (*_LABEL_COLUMNS, *(classes if len(classes) == 1 else ())):
        if name in schema.names:
            return name, list(classes.get(name, ()))
    return None, []


class Parquet:
    """A Parquet file: its schema, and columns by row group."""

    def __init__(self, path: str):
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        self.schema = self._file.schema_arrow

    @property
    def group_rows(self) -> list[int]:
        """Number of rows of each group."""
        metadata = self._file.metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def mean_bytes(self, name: str) -> float:
        """Return the mean size of a value of a column in the file, bytes."""
        metadata = self._file.metadata
        total = 0
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            chunks = map(group.column, range(group.num_columns))
            total += sum(
                chunk.total_uncompressed_size
                for chunk in chunks
                if chunk.path_in_schema == name
            )
        return total / max(metadata.num_rows, 1)

    def column(self, group: int, name: str) -> Any:
        """Return a column of a group, a `pyarrow.ChunkedArray`."""
        table = self._file.read_row_group(group, columns=[name], use_threads=False)
        return table.column(0)

    def values(self, name: str) -> list[Any]:
        """Return all values of a column."""
        return self._file.read(columns=[name], use_threads=False).column(0).to_pylist()


class Arrow:
    """An Arrow file or stream, mapped into memory, as one group."""

    def __init__(self, path: str):
        import pyarrow

        with open(path, "rb") as file:
            is_file = file.read(6) == b"ARROW1"
        source = pyarrow.memory_map(path)
        opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
        self._table = opened(source).read_all()
        self.schema = self._table.schema

    @property
    def group_rows(self) -> list[int]:
        """Number of rows of each group."""
        return [self._table.num_rows]

    def mean_bytes(self, name: str) -> float:
        """Return the mean size of a value of a column, bytes."""
        return self._table.column(name).nbytes / max(self._table.num_rows, 1)

    def column(self, group: int, name: str) -> Any:
        """Return a column of a group, a `pyarrow.ChunkedArray`."""
        del group
        return self._table.column(name)

    def values(self, name: str) -> list[Any]:
        """Return all values of a column."""
        return self._table.column(name).to_pylist()


def open_table(path: str) -> Parquet | Arrow:
    """Open a file.

    Raises:
      OSError or ValueError: It is neither Parquet nor Arrow, or damaged.
    """
    return (Parquet if is_parquet(path) else Arrow)(path)


def is_parquet(path: str) -> bool:
    """Return whether a file's name is that of a Parquet file."""
    return path.lower().endswith(".parquet")


def holds_images(path: str) -> bool:
    """Return whether a Parquet or Arrow file has a column of image files."""
    if not os.path.isfile(path):  # reading a pipe would never end
        return False
    try:
        table = open_table(path)
        column = image_column(table.schema)
        return column is not None and not _are_paths(table, column)
    except (ImportError, OSError, ValueError):  # pyarrow's errors are the latter
        return False


def _are_paths(table: Parquet | Arrow, column: str) -> bool:
    """Return whether a column of bytes holds the paths of images, as in lists."""
    kind = table.schema.field(column).type
    groups = [i for i, rows in enumerate(table.group_rows) if rows]
    if kind.num_fields or not groups or table.mean_bytes(column) > _LONGEST_PATH:
        return False
    first = table.column(groups[0], column)[0].as_py() or b""
    return extensions.is_image(os.fsdecode(first))
