"""The features file and the JSON file beside it that describes it.

OUT.json:
  settings     inputs and options of the computation, by name
  bytes        size of the features file, which shows whether it was replaced
  rows         number of rows
  root         folder that the names are relative to, an absolute path; null if the
               images are no files, such as those of shards
  skipped      {name: reason} of the images that could not be read
  names        names of the images in the order of the rows (.npy only)

Names are paths relative to the root. Bytes in them that are not UTF-8 are lone
surrogates in JSON, which `os.fsencode` reverts, and \\xNN in Parquet, which requires
Unicode; the column `path` of Parquet has the absolute paths as bytes. Files of earlier
versions have neither `root` nor `path`.
"""

import importlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dinov2_jax import errors, files

SUFFIXES = (".npy", ".parquet")
_GROUP_BYTES = 64 * 2**20  # of features in a Parquet row group
_GROUP_ROWS = 65536


def description_of(out: pathlib.Path) -> pathlib.Path:
    """Return the path of the JSON file that describes `out`."""
    return out.with_name(f"{out.name}.json")


def check(out: pathlib.Path) -> None:
    """Check that a file of this name can be written.

    Raises:
      UserError: It cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise errors.UserError(
            f"--out={out}: the name must end in {' or '.join(SUFFIXES)}"
        )
    if out.is_dir():
        raise errors.UserError(
            f"--out={out} is a folder: pass a file name, such as "
            f"{out / f'features{out.suffix}'}"
        )
    folder = out.parent
    if not folder.is_dir():
        raise errors.UserError(
            f"--out={out}: there is no folder {folder}: create it first"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise errors.UserError(
            f"--out={out}: the folder {folder.absolute()} is not writable: choose "
            "another"
        )
    if out.suffix == ".parquet":
        _parquet()


def is_complete(
    out: pathlib.Path, settings: Mapping[str, Any], root: str | None = None
) -> bool:
    """Return whether the file exists and was computed with these settings.

    Args:
      out: The features file.
      settings: Settings that its description must have.
      root: Folder of the images, which it must have too if it states one: files of
        earlier versions do not. None accepts any.
    """
    try:
        description = json.loads(description_of(out).read_bytes())
        return (
            description["settings"] == json.loads(json.dumps(settings))
            and (root is None or description.get("root", root) == root)
            and description["bytes"] == out.stat().st_size
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def publish(
    out: pathlib.Path,
    rows: pathlib.Path,
    count: int,
    names: Callable[[], Iterator[bytes]],
    skipped: Mapping[bytes, str],
    settings: Mapping[str, Any],
    root: str | None,
) -> None:
    """Give complete rows their final name and format, and write the description.

    A kill in between leaves no features file, but keeps the rows for another attempt.

    Args:
      out: The features file.
      rows: The .npy file of the rows; moved away or no longer needed afterwards.
      count: Number of rows.
      names: Function that returns a new iterator over the paths of the rows' images.
      skipped: Reasons why images were skipped, by path.
      settings: Settings for the description.
      root: Folder that the paths are relative to; None if the images are no files.

    Raises:
      UserError: A file cannot be written.
    """
    try:
        if out.suffix == ".parquet":
            table = rows.with_name("table.parquet")
            _write_parquet(rows, table, names(), settings, root)
            rows = table
        out.unlink(missing_ok=True)  # never beside another's description
        _describe(out, rows, count, names(), skipped, settings, root)
        files.publish(rows, out)
    except OSError as error:
        raise errors.UserError(
            f"cannot write {out} ({error.strerror}): fix that, then run the same "
            "command to finish"
        ) from error


def _describe(out, rows, count, names, skipped, settings, root) -> None:
    """Write the JSON file, one name per line, with only one name in memory."""
    fields = {
        "settings": settings,
        "bytes": rows.stat().st_size,
        "rows": count,
        "root": root,
        "skipped": {os.fsdecode(name): reason for name, reason in skipped.items()},
    }
    with files.open_new(description_of(out)) as binary:
        file = io.TextIOWrapper(binary, "ascii", newline="\n")
        file.write(json.dumps(fields, indent=1)[:-2])  # without "\n}"
        if out.suffix == ".npy":
            file.write(',\n "names": [')
            separator = "\n"
            for name in names:
                file.write(f"{separator}{json.dumps(os.fsdecode(name))}")
                separator = ",\n"
            file.write("\n]")
        file.write("\n}\n")
        file.detach()


def _write_parquet(rows, table, names, settings, root) -> None:
    """Write the columns of `_schema`, one row group in memory at a time."""
    parquet, arrow = _parquet(), importlib.import_module("pyarrow")
    features = np.load(rows, mmap_mode="r")
    features = features.reshape(len(features), -1)
    width = features.shape[1]
    schema = _schema(arrow, features.dtype, width, settings, root is not None)
    lists_type = schema.field("features").type
    row_bytes = max(width * features.itemsize, 1)
    size = int(np.clip(_GROUP_BYTES // row_bytes, 1, _GROUP_ROWS))
    # Features do not compress, and dictionaries or statistics of them are of no use.
    with parquet.ParquetWriter(
        table, schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for start in range(0, len(features), size):
            chunk = np.array(features[start : start + size])
            found = [next(names) for _ in range(len(chunk))]
            texts = [name.decode("utf-8", "backslashreplace") for name in found]
            columns = [arrow.array(texts, arrow.string())]
            if root is not None:
                folder = os.fsencode(root)
                paths = [os.path.join(folder, name) for name in found]
                columns.append(arrow.array(paths, arrow.binary()))
            values = arrow.array(chunk.ravel(), lists_type.value_type)
            columns.append(
                arrow.FixedSizeListArray.from_arrays(values, type=lists_type)
            )
            writer.write_batch(arrow.record_batch(columns, schema=schema))


def _schema(arrow, dtype, width, settings, with_paths) -> Any:
    """Return the columns `name`, `path` if there are files, and `features`."""
    values = arrow.from_numpy_dtype(dtype)
    lists = arrow.list_(arrow.field("element", values, nullable=False), width)
    kinds = {"name": arrow.string(), "path": arrow.binary(), "features": lists}
    if not with_paths:
        del kinds["path"]
    fields = [arrow.field(name, kind, nullable=False) for name, kind in kinds.items()]
    return arrow.schema(fields, metadata={"dinov2_jax": json.dumps(settings)})


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise errors.UserError(
            "writing .parquet needs pyarrow: pip install pyarrow, or write .npy"
        ) from error
