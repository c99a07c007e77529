"""Images that a file lists: a text file, a table, or Parquet.

* `.txt`: a path a line; empty lines and lines that begin with `#` are passed over.
* `.csv`, `.tsv`: a header line; the column `path`, `file`, `image` or `filename`, and
  perhaps `label`.
* `.parquet`: the same columns.

Relative paths are relative to the file's folder. The order is the file's.
"""

import csv
import os
from collections.abc import Iterable, Iterator

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import folder, images, index_file

EXTENSIONS = (".txt", ".csv", ".tsv", ".parquet")
_PATH_COLUMNS = ("path", "file", "image", "filename")
_LABEL_COLUMN = "label"
_VERSION = "1"


class ManifestSource(folder.FilesSource):
    """The images that a manifest lists.

    Args:
      path: The manifest.
      decoder: Of the files.
      field: Of the configuration, for messages.
    """

    def __init__(self, path: str, decoder: images.Decoder, *, field: str = "data.path"):
        said = os.path.expanduser(path)
        self.manifest = os.path.abspath(said)
        if not os.path.isfile(said):
            what = "is not a file" if os.path.exists(said) else "does not exist"
            raise errors.UserError(
                f"{field} = {said} {what}: name a manifest ({' '.join(EXTENSIONS)})"
            )
        try:
            index = _index(self.manifest, said)
        except (OSError, UnicodeError, csv.Error) as error:
            raise errors.UserError(
                f"cannot read {field} = {said} ({' '.join(str(error).split())}): "
                "repair it or name another manifest"
            ) from error
        super().__init__(os.path.dirname(self.manifest), index, decoder)
        if not len(self):
            raise errors.UserError(
                f"no paths in {field} = {said}: write one path a line (.txt), or a "
                f"column called {', '.join(_PATH_COLUMNS)} (.csv, .tsv, .parquet)"
            )

    def _where(self) -> str:
        return f"listed in {self.manifest}"


def _index(manifest: str, said: str) -> index_file.Index:
    status = os.stat(manifest)
    key = index_file.key("manifest", _VERSION, manifest)
    state = [status.st_size, status.st_mtime_ns]
    index = index_file.newest(key)
    if index is not None and index.header["state"] == state:
        return index
    paths, labels = _read(manifest, said)
    arrays = index_file.text_arrays("paths", paths)
    numbers, names = numbered_labels(labels)
    if numbers is not None:
        arrays["labels"] = numbers
    fingerprint = index_file.fingerprint(arrays | {"state": np.array(state)})
    header = {"fingerprint": fingerprint, "label_names": names, "state": state}
    return index_file.write(key, fingerprint, header, arrays)


def _read(manifest: str, said: str) -> tuple[list[bytes], list[str | None]]:
    extension = os.path.splitext(manifest)[1].lower()
    if extension == ".parquet":
        paths, labels = _parquet(manifest, said)
    elif extension in (".csv", ".tsv"):
        paths, labels = _table(manifest, said, "\t" if extension == ".tsv" else ",")
    elif extension == ".txt":
        with open(manifest, "rb") as file:
            lines = (line.rstrip(b"\r\n") for line in file)
            paths = [p for p in lines if p.strip() and not p.startswith(b"#")]
        if paths and paths[0].startswith(b"\xef\xbb\xbf"):  # a byte order mark
            paths[0] = paths[0][3:]
        labels = []
    else:
        raise errors.UserError(
            f"{said} is not a manifest that is known: its name has to end with "
            f"{', '.join(EXTENSIONS)}"
        )
    return paths, labels


def _table(manifest, said, delimiter) -> tuple[list[bytes], list[str | None]]:
    with open(
        manifest, newline="", encoding="utf-8-sig", errors="surrogateescape"
    ) as file:
        rows = csv.reader(file, delimiter=delimiter)
        header = [name.strip().lower() for name in next(rows, [])]
        path_at, label_at = _columns(header, said)
        paths, labels = [], []
        for row in rows:
            if not row:
                continue
            if len(row) <= path_at or not row[path_at]:
                raise errors.UserError(
                    f"{said}, line {rows.line_num}, has no path: complete the line"
                )
            paths.append(os.fsencode(row[path_at]))
            if label_at is not None:
                labels.append(row[label_at] if len(row) > label_at else None)
    return paths, labels


def _columns(header: list[str], said: str) -> tuple[int, int | None]:
    """Where the paths are, and the labels."""
    for name in _PATH_COLUMNS:
        if name in header:
            label = header.index(_LABEL_COLUMN) if _LABEL_COLUMN in header else None
            return header.index(name), label
    raise errors.UserError(
        f"{said} has no column for the paths, only {', '.join(header)[:200] or 'none'}"
        f": call one {' or '.join(_PATH_COLUMNS)} in its first line"
    )


def _parquet(manifest, said) -> tuple[list[bytes], list[str | None]]:
    try:
        from pyarrow import lib, parquet
    except ImportError as error:
        raise errors.UserError(
            f"{said} needs: pip install pyarrow ({error})"
        ) from error
    try:
        file = parquet.ParquetFile(manifest)
        header = [name.lower() for name in file.schema_arrow.names]
        path_at, label_at = _columns(header, said)
        at = (path_at, path_at if label_at is None else label_at)
        names = [file.schema_arrow.names[i] for i in at]
        paths: list[bytes] = []
        labels: list[str | None] = []
        for batch in file.iter_batches(columns=list(dict.fromkeys(names))):
            for path in _values(batch, names[0]):
                if not path:
                    raise errors.UserError(
                        f"{said}, row {len(paths)}, has no path: complete the row"
                    )
                paths.append(path if isinstance(path, bytes) else os.fsencode(path))
            if label_at is not None:
                labels += [
                    None if value is None else str(value)
                    for value in _values(batch, names[1])
                ]
    except (lib.ArrowException, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(
            f"cannot read {said} ({reason}): repair it or name another manifest"
        ) from error
    return paths, labels


def _values(batch, name: str) -> Iterator:
    return iter(batch.column(batch.schema.names.index(name)).to_pylist())


def numbered_labels(
    labels: Iterable[str | None],
) -> tuple[np.ndarray | None, list[str]]:
    """int32 labels and their names, sorted; (None, []) where some image has none.

    Names that all are whole numbers are sorted as numbers.
    """
    labels = list(labels)
    if not labels or any(label is None or label == "" for label in labels):
        return None, []
    names = sorted(set(labels))
    try:
        names.sort(key=int)
    except ValueError:
        pass
    label_of = {name: number for number, name in enumerate(names)}
    return np.array([label_of[label] for label in labels], np.int32), names
