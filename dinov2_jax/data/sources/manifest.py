"""Images listed in a file: a text file, a table, or Parquet.

* `.txt`: one path per line, or a path and a label as in ImageNet's lists; empty lines
  and lines that begin with `#` are skipped. Lists of folders: `folder_lists`.
* `.csv`, `.tsv`: a header line; the column `path`, `file`, `image`, `filename` or the
  like, and optionally `label` and `repeat`; separated by commas, semicolons or tabs.
* `.parquet`: the same columns; paths are texts or bytes.

`repeat` is the number of times that an image is shown in a pass, at least 1.

Relative paths are relative to the manifest's folder. Images keep its order. Blanks and
double quotes around a path are stripped, unless a file has that exact name.
"""

import concurrent.futures
import csv
import dataclasses
import itertools
import os
from collections.abc import Iterable

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import (
    extensions,
    folder,
    folder_walk,
    index_cache,
    manifest_tables,
    messages,
)

EXTENSIONS = (".txt", ".csv", ".tsv", ".parquet")
_VERSION = "5"
LOOKED_AT = 100  # first paths, of which at least one must exist
_STATUSES = 10_000  # files whose sizes and times are part of the fingerprint
_BOM = b"\xef\xbb\xbf"
_AROUND = b' \t"'


def is_manifest(path: str) -> bool:
    """Return whether a file's name is that of a manifest."""
    return os.path.splitext(path)[1].lower() in EXTENSIONS


class ManifestSource(folder.FilesSource):
    """The images that a manifest lists.

    Args:
      path: Path of the manifest.
      decoder: Decoder of the files.
      field: The configuration field to name in messages.
    """

    def __init__(
        self, path: str, decoder: image_decoder.Decoder, *, field: str = "data.path"
    ):
        given = os.path.expanduser(path)
        self.manifest = os.path.abspath(given)
        if not os.path.isfile(given):
            what = "is not a file" if os.path.exists(given) else "does not exist"
            raise errors.UserError(
                f"{field} = {given} {what}: name a manifest ({' '.join(EXTENSIONS)})"
            )
        try:
            index = _index(self.manifest, given, f"{field} = {given}")
        except (OSError, UnicodeError, csv.Error) as error:
            raise errors.UserError(
                f"cannot read {field} = {given} ({' '.join(str(error).split())}): "
                "repair it or name another manifest"
            ) from error
        super().__init__(os.path.dirname(self.manifest), index, decoder)
        self._fingerprint = index_cache.fingerprint(
            index_cache.text_arrays("list", [index.header["fingerprint"].encode()])
            | {"statuses": self._statuses()}
        )

    def _statuses(self) -> np.ndarray:
        """Return int64 sizes and times of the files or a sample; -1 if missing."""
        count = min(len(self), _STATUSES)
        chosen = np.linspace(0, len(self) - 1, count).astype(int)
        root = os.fsencode(self.path)

        def read_statuses(numbers: np.ndarray) -> list[int]:
            found = []
            for number in numbers:
                try:
                    status = os.stat(os.path.join(root, self._paths[number]))
                    found += [status.st_size, status.st_mtime_ns]
                except (OSError, ValueError):  # ValueError: a zero byte
                    found += [-1, -1]
            return found

        parts = np.array_split(chosen, 4 * folder_walk.THREADS)
        with concurrent.futures.ThreadPoolExecutor(folder_walk.THREADS) as pool:
            return np.array(sum(pool.map(read_statuses, parts), []), np.int64)

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the list and the files' sizes and modification times.

        Of more than 10,000 files, an evenly spaced sample counts.
        """
        return self._fingerprint

    @property
    def pass_length(self) -> int:
        """Number of places of a pass: the sum of the column `repeat`, if there is one.

        The places of an image are consecutive.
        """
        ends = self._place_ends
        return len(self) if ends is None else int(ends[-1])

    def resolve(self, pass_number: int, place: int) -> int:
        """Return the image that a place of a pass shows."""
        ends = self._place_ends
        if ends is None:
            return super().resolve(pass_number, place)
        return int(np.searchsorted(ends, place, side="right"))

    @property
    def _place_ends(self) -> np.ndarray | None:
        """int64 [length], the place after the last of each image; None if all one."""
        return self._index["place_ends"] if "place_ends" in self._index else None

    def _where(self) -> str:
        repeated = self.pass_length - len(self)
        places = f", {self.pass_length:,} places a pass" if repeated else ""
        return f"listed in {self.manifest}{places}"


def _index(manifest: str, given: str, what: str) -> index_cache.Index:
    status = os.stat(manifest)
    key = index_cache.key("manifest", _VERSION, manifest)
    state = [status.st_size, status.st_mtime_ns]
    index = index_cache.newest(key)
    if index is not None and index.header["state"] == state:
        _check_first(index_cache.Texts(index, "paths"), manifest, what)
        return index
    listed = _read(manifest, given)
    # Before it is written: how lines are split depends on the files that exist.
    _check_first(listed.paths, manifest, what)
    arrays = index_cache.text_arrays("paths", listed.paths)
    numbers, names = numbered_labels(listed.labels)
    if numbers is not None:
        arrays["labels"] = numbers
    if listed.repeats:  # otherwise fingerprints are those of earlier versions
        arrays["place_ends"] = np.cumsum(listed.repeats, dtype=np.int64)
    fingerprint = index_cache.fingerprint(arrays)
    header = {"fingerprint": fingerprint, "label_names": names, "state": state}
    return index_cache.write(key, fingerprint, header, arrays)


def _check_first(
    paths: list[bytes] | index_cache.Texts, manifest: str, what: str
) -> None:
    """Raise UserError if there are no paths, or none of the first files exists."""
    if not len(paths):
        columns = ", ".join(manifest_tables.PATH_COLUMNS)
        raise errors.UserError(
            f"no paths in {what}: write one path per line (.txt), or a "
            f"column called {columns} (.csv, .tsv, .parquet)"
        )
    folder_path = os.path.dirname(manifest)
    root = os.fsencode(folder_path)
    first = [paths[i] for i in range(min(len(paths), LOOKED_AT))]
    name = first[0].decode("utf-8", "backslashreplace")
    if extensions.is_slide(name):
        raise errors.UserError(f"{what} lists {name[:200]!r}: {extensions.TILE_SLIDES}")
    if all(os.path.isdir(os.path.join(root, path)) for path in first):
        raise errors.UserError(
            f"{what} lists folders, such as {name[:200]!r}: list them one "
            "per line in a text file (.txt), or list their files"
        )
    if not any(_exists(root, path) for path in first):
        raise errors.UserError(
            f"{what} lists files that do not exist, such as {name[:200]!r} "
            f"(looked for the first {len(first)} in {folder_path}, the list's folder): "
            "mount their disk, move the list, or write absolute paths"
        )


def _exists(root: bytes, path: bytes) -> bool:
    try:
        os.stat(os.path.join(root, path))
    except (OSError, ValueError):  # ValueError: a zero byte
        return False
    return True


def _read(manifest: str, given: str) -> manifest_tables.Listed:
    extension = os.path.splitext(manifest)[1].lower()
    if extension == ".parquet":
        listed = manifest_tables.read_parquet(manifest, given)
    elif extension in (".csv", ".tsv"):
        _check_encoding(manifest, given)
        listed = manifest_tables.read_text(manifest, given)
    elif extension == ".txt":
        _check_encoding(manifest, given)
        listed = manifest_tables.Listed(*_split_labels(manifest, lines(manifest)))
    else:
        raise errors.UserError(
            f"{given} is not a known kind of manifest: its name must end in "
            f"{', '.join(EXTENSIONS)}"
        )
    for path in listed.paths:
        if b"://" in path and messages.is_url(os.fsdecode(path)):
            name = path.decode("utf-8", "backslashreplace")
            raise errors.UserError(messages.url_problem(name, f"a path in {given}"))
    root = os.fsencode(os.path.dirname(manifest))
    paths = [bare(root, path) for path in listed.paths]
    return dataclasses.replace(listed, paths=paths)


def _check_encoding(manifest: str, given: str) -> None:
    with open(manifest, "rb") as file:
        head = file.read(32)
    halves = [half for half in (head[::2], head[1::2]) if half]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or not all(map(any, halves)):
        raise errors.UserError(
            f"{given} is in UTF-16: write it in UTF-8 (iconv -f UTF-16 -t UTF-8)"
        )


def lines(manifest: str, most: int | None = None) -> list[bytes]:
    """Return the lines of a text file that are neither empty nor comments.

    Args:
      manifest: Path of the file.
      most: Number of lines to read; None reads all.
    """
    with open(manifest, "rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        read = itertools.islice(file, most)
        found = [line.rstrip(b"\r\n") for line in read]
    if len(found) == 1:  # or lines end with CR, as on old Macs
        found = found[0].split(b"\r")
    return [x for x in found if x.strip() and not x.lstrip().startswith(b"#")]


def _split_labels(
    manifest: str, lines: list[bytes]
) -> tuple[list[bytes], list[str | None]]:
    """Split lines into paths and labels if they hold both, as files that exist tell."""
    root = os.fsencode(os.path.dirname(manifest))
    if any(_exists(root, bare(root, line)) for line in lines[:LOOKED_AT]):
        return lines, []
    pairs = [line.strip().rsplit(None, 1) for line in lines]
    if not all(len(pair) == 2 for pair in pairs) or not any(
        _exists(root, bare(root, path)) for path, _ in pairs[:LOOKED_AT]
    ):
        return lines, []
    return [path for path, _ in pairs], [os.fsdecode(label) for _, label in pairs]


def bare(root: bytes, path: bytes) -> bytes:
    """Strip blanks and quotes around a path, unless a file has that exact name."""
    if path[:1] not in _AROUND and path[-1:] not in _AROUND or _exists(root, path):
        return path
    stripped = path.strip()
    if len(stripped) > 2 and stripped[:1] == stripped[-1:] == b'"':
        stripped = stripped[1:-1]
    return stripped or path


def numbered_labels(
    labels: Iterable[str | None],
) -> tuple[np.ndarray | None, list[str]]:
    """Return int32 labels and their sorted names; (None, []) if an image has none.

    If all names are integers, they are sorted as numbers.
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
