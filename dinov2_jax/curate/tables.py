"""Tables between the steps: Parquet files keyed by `name`, and a JSON file beside each.

PATH.json says what a table was made of: "step", "inputs" with their digests,
"parameters", "counts", "seed" and the version of this package. The same text is in the
metadata of the Parquet file, so that a table and its record cannot be separated.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors, files

_GROUP_ROWS = 2**20
_METADATA = "dinov2_jax.curate"


def check_out(
    path: pathlib.Path,
    *,
    suffix: str = ".parquet",
    flag: str = "--out",
    new: bool = True,
) -> None:
    """Check that a file can be written.

    Args:
      path: Path of the file, the value of the flag.
      suffix: Ending that its name must have.
      flag: Name of the flag.
      new: Whether it must not exist.

    Raises:
      UserError: It cannot be written, or it exists.
    """
    if path.suffix != suffix:
        raise errors.UserError(f"{flag}={path}: the name must end in {suffix}")
    if not path.parent.is_dir():
        raise errors.UserError(
            f"{flag}={path}: there is no folder {path.parent}: create it first"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise errors.UserError(
            f"{flag}={path}: the folder {path.parent.absolute()} is not writable: "
            "choose another"
        )
    if new and path.exists():
        raise errors.UserError(
            f"{flag}={path} exists: choose another name, or remove it first"
        )


def write(
    path: str | os.PathLike, columns: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Write a table and its record, each whole or not at all.

    Args:
      path: Path of the Parquet file.
      columns: Arrays or lists of one length by name; "name" is the key.
      record: JSON values: step, inputs with digests, parameters, counts and seed.

    Raises:
      UserError: A file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    path = pathlib.Path(path)
    version = importlib.metadata.version("dinov2-jax")
    text = json.dumps({**record, "version": version}, indent=1)
    table = pyarrow.table(
        {name: pyarrow.array(values) for name, values in columns.items()},
        metadata={_METADATA: text},
    )
    with files.open_new(path.with_name(f"{path.name}.json")) as file:
        file.write(text.encode() + b"\n")
    with files.open_new(path) as file:
        parquet.write_table(table, file, row_group_size=_GROUP_ROWS)


def read(
    path: str | os.PathLike, wanted: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the columns of a table and its record.

    Args:
      path: Path of the Parquet file, which may come from another program, or of a
        folder of such files.
      wanted: Names of the columns to read, which it must have; None for all.

    Returns:
      Arrays by name, with strings as objects, and the record; {} if it has none.

    Raises:
      UserError: The file does not exist, is no Parquet file, lacks a column or has
        names that are not text, or null.
    """
    with _reading(path) as dataset:
        if wanted is not None:
            need(dict.fromkeys(dataset.schema.names), wanted, path=path)
        table = dataset.read(columns=wanted)
    record = json.loads((table.schema.metadata or {}).get(_METADATA.encode(), "{}"))
    columns = {
        name: table.column(name).to_numpy(zero_copy_only=False)
        for name in table.column_names
    }
    if "name" in columns and (nulls := table.column("name").null_count):
        raise errors.UserError(_nulls(path, "name", nulls, len(columns["name"])))
    kind = str(table.schema.field("name").type) if "name" in columns else "string"
    if "string" not in kind:
        raise errors.UserError(
            f"{path}: the column name has {kind}, not text: write names as strings"
        )
    return columns, record


def layout(path: str | os.PathLike) -> tuple[list[str], int]:
    """Return the names of a table's columns and its number of rows, reading no row.

    Args:
      path: Path of the Parquet file, or of a folder of such files.

    Raises:
      UserError: The file does not exist or is no Parquet file.
    """
    with _reading(path) as dataset:
        rows = sum(fragment.count_rows() for fragment in dataset.fragments)
        return dataset.schema.names, rows


def refuse_nulls(path: str | os.PathLike, columns: Sequence[str]) -> None:
    """Check that columns have no nulls, by few rows at a time.

    Args:
      path: Path of the Parquet file, or of a folder of such files.
      columns: Names of columns that it has.

    Raises:
      UserError: There are nulls.
    """
    import pyarrow
    from pyarrow import compute

    for name in columns:
        with _reading(path) as dataset:
            if pyarrow.types.is_floating(dataset.schema.field(name).type):
                nulls = _count_nan(dataset, name)
            else:
                nulls = _count(dataset, compute.field(name).is_null())
        if nulls:
            raise errors.UserError(_nulls(path, name, nulls, layout(path)[1]))


def refuse_unclustered(path: str | os.PathLike, columns: Sequence[str]) -> None:
    """Check that each image is in a cluster of each level, by few rows at a time.

    Args:
      path: Path of the Parquet file, or of a folder of such files.
      columns: Names of the columns c1, c2, ... that it has.

    Raises:
      UserError: There are nulls or negative numbers.
    """
    import pyarrow
    from pyarrow import compute

    refuse_nulls(path, columns)
    for name in columns:
        with _reading(path) as dataset:
            kind = dataset.schema.field(name).type
            numbers = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
            negative = _count(dataset, compute.field(name) < 0) if numbers else 0
        if negative:
            raise errors.UserError(
                f"{path}: the column {name} is negative in {negative:,} rows: leave "
                "those images out, or give each a cluster of its own, from 0"
            )


def _count(dataset: Any, condition: Any) -> int:
    """Return the number of rows that meet a condition; most groups are not read."""
    return sum(part.count_rows(filter=condition) for part in dataset.fragments)


def _count_nan(dataset: Any, column: str) -> int:
    """Return the number of nulls and NaN, of which Parquet keeps no statistics."""
    return sum(
        batch.column(0).is_null(nan_is_null=True).true_count
        for part in dataset.fragments
        for batch in part.to_batches(columns=[column])
    )


def _nulls(path: str | os.PathLike, column: str, nulls: int, rows: int) -> str:
    return (
        f"{path}: the column {column} is null in {nulls:,} of {rows:,} rows: fill it, "
        "or leave those rows out"
    )


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[Any]:
    """Open a Parquet data set; raises UserError where it cannot be read."""
    from pyarrow import parquet

    path = pathlib.Path(path)
    found = _files_of(path) if path.is_dir() else [path]
    if not found:
        raise errors.UserError(
            f"the folder {path} has no *.parquet: name a file, or a folder with some"
        )
    try:
        yield parquet.ParquetDataset(found)
    except FileNotFoundError as error:
        raise errors.UserError(
            f"{path} does not exist: name the --out of an earlier step"
        ) from error
    except (OSError, ValueError) as error:  # pyarrow's errors are the latter
        raise errors.UserError(
            f"{path} is no Parquet file ({str(error).splitlines()[0]}): name the --out "
            "of an earlier step, or a table of another program"
        ) from error


def match(
    names: Sequence[str] | np.ndarray,
    columns: Mapping[str, np.ndarray],
    *,
    path: str | os.PathLike = "the table",
) -> dict[str, np.ndarray]:
    """Return a table's columns with their rows in the order of `names`.

    Args:
      names: Names that the table must have, each once.
      columns: Columns of the table, with "name".
      path: Path of the table, for the error.

    Raises:
      UserError: The table has other names.
    """
    need(columns, ["name"], path=path)
    found = columns["name"]
    if len(found) == len(names) and np.array_equal(found, names):
        return dict(columns)
    rows = {name: row for row, name in enumerate(found)}
    missing = [name for name in names if name not in rows]
    if missing or len(found) != len(names):
        other = missing or sorted(set(rows) - set(names)) or [found[0]]
        where = "lacks" if missing else "has also"
        raise errors.UserError(
            f"{path} is of other images: it has {len(found):,} rows, the features "
            f"{len(names):,}, and it {where} {other[0]!r}: make it from the same "
            "features"
        )
    order = np.array([rows[name] for name in names], np.int64)
    return {name: values[order] for name, values in columns.items()}


def need(
    columns: Mapping[str, Any],
    wanted: Sequence[str],
    *,
    path: str | os.PathLike = "the table",
) -> None:
    """Check that a table has columns.

    Args:
      columns: Columns of the table.
      wanted: Names of the columns that it must have.
      path: Path of the table, for the error.

    Raises:
      UserError: A column is missing.
    """
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise errors.UserError(
            f"{path} has no column {missing[0]}, only {', '.join(columns)}: name "
            "another table, or rename the column"
        )


def digest(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a table, for a record.

    Args:
      path: Path of the Parquet file, or of a folder of such files.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return files.sha256(path)
    total = hashlib.sha256()
    for file in _files_of(path):
        total.update(bytes(file.relative_to(path)) + b"\0")
        total.update(bytes.fromhex(files.sha256(file)))
    return total.hexdigest()


def _files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the Parquet files below a folder, sorted; others may lie beside them."""
    return sorted(path for path in folder.rglob("*.parquet") if path.is_file())
