"""The columns of a manifest in CSV, TSV or Parquet."""

import csv
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from dinov2_jax import errors

PATH_COLUMNS = (
    *("path", "file", "image", "filename", "filepath", "file_name", "file_path"),
    *("image_path", "img_path", "image_file", "img"),
)
_LABEL_COLUMN, _REPEAT_COLUMN = "label", "repeat"
_MOST_TIMES = 10_000  # most times that an image is shown in a pass


@dataclasses.dataclass(frozen=True)
class Listed:
    """The rows of a manifest.

    Attributes:
      paths: Path of each image.
      labels: Label of each image, or None; empty if there is no column of labels.
      repeats: Times that each image is shown in a pass; empty if there is no column.
    """

    paths: list[bytes]
    labels: list[str | None] = dataclasses.field(default_factory=list)
    repeats: list[int] = dataclasses.field(default_factory=list)


def read_text(manifest: str, given: str) -> Listed:
    """Read a table whose columns are separated by commas, semicolons or tabs.

    Args:
      manifest: Path of the table.
      given: The path as the user gave it, for messages.

    Raises:
      UserError: There is no column of paths, or a row has no path or a wrong repeat.
      OSError, UnicodeError or csv.Error: It cannot be read.
    """
    with open(
        manifest, newline="", encoding="utf-8-sig", errors="surrogateescape"
    ) as file:
        delimiter = _delimiter(file.readline())
        file.seek(0)
        rows = csv.reader(file, delimiter=delimiter)
        header = [name.strip().lower() for name in next(rows, [])]
        path_at, label_at, repeat_at = _columns(header, given)
        listed = Listed([])
        for row in rows:
            if not row:
                continue
            where = f"{given}, line {rows.line_num}"
            if len(row) <= path_at or not row[path_at].strip():
                raise errors.UserError(f"{where}, has no path: complete the line")
            listed.paths.append(os.fsencode(row[path_at]))
            if label_at is not None:
                listed.labels.append(row[label_at] if len(row) > label_at else None)
            if repeat_at is not None:
                value = row[repeat_at] if len(row) > repeat_at else ""
                listed.repeats.append(_times(value, where))
    return listed


def _delimiter(line: str) -> str:
    """Return the delimiter of a header line: the one that gives a path column."""
    for delimiter in ",;\t":
        header = next(csv.reader([line], delimiter=delimiter), [])
        if {name.strip().lower() for name in header} & set(PATH_COLUMNS):
            return delimiter
    return ","


def _columns(header: list[str], given: str) -> tuple[int, int | None, int | None]:
    """Return the numbers of the columns of paths, labels and repeats."""

    def find(name: str) -> int | None:
        return header.index(name) if name in header else None

    for name in PATH_COLUMNS:
        if name in header:
            return header.index(name), find(_LABEL_COLUMN), find(_REPEAT_COLUMN)
    raise errors.UserError(
        f"{given} has no column for the paths, only {', '.join(header)[:200] or 'none'}"
        f": call one {' or '.join(PATH_COLUMNS)} in its first line"
    )


def _times(value: Any, where: str) -> int:
    """Return how often an image is shown in a pass."""
    try:
        number = float(value)
        times = int(number) if number.is_integer() else 0
    except (TypeError, ValueError):
        times = 0
    if not 1 <= times <= _MOST_TIMES:
        raise errors.UserError(
            f"{where}, has repeat = {value!r}: write a whole number from 1 to "
            f"{_MOST_TIMES:,}, or leave the image out"
        )
    return times


def read_parquet(manifest: str, given: str) -> Listed:
    """Read the same columns of a Parquet file; paths are texts or bytes.

    Args:
      manifest: Path of the file.
      given: The path as the user gave it, for messages.

    Raises:
      UserError: As of `read_text`, or it cannot be read.
    """
    try:
        from pyarrow import lib, parquet
    except ImportError as error:
        raise errors.UserError(
            f"{given} needs: pip install pyarrow ({error})"
        ) from error
    try:
        file = parquet.ParquetFile(manifest)
        names = file.schema_arrow.names
        path_at, label_at, repeat_at = _columns([n.lower() for n in names], given)
        used = [names[at] for at in (path_at, label_at, repeat_at) if at is not None]
        listed = Listed([])
        for batch in file.iter_batches(columns=used):
            first = len(listed.paths)
            for path in _values(batch, names[path_at]):
                if not path:
                    raise errors.UserError(
                        f"{given}, row {len(listed.paths)}, has no path: complete the "
                        "row"
                    )
                is_bytes = isinstance(path, bytes)
                listed.paths.append(path if is_bytes else os.fsencode(path))
            if label_at is not None:
                listed.labels.extend(
                    None if value is None else str(value)
                    for value in _values(batch, names[label_at])
                )
            if repeat_at is not None:
                values = enumerate(_values(batch, names[repeat_at]), first)
                listed.repeats.extend(
                    _times(value, f"{given}, row {row}") for row, value in values
                )
    except (lib.ArrowException, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(
            f"cannot read {given} ({reason}): repair it or name another manifest"
        ) from error
    return listed


def _values(batch, name: str) -> Iterator:
    return iter(batch.column(batch.schema.names.index(name)).to_pylist())
