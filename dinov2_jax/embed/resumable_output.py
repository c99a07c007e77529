"""Folder of an unfinished run, which survives a kill and is removed after the run.

OUT.partial/ holds
  run.json   what the run computes; a different run cannot resume here
  rows.npy   the rows so far, in the final format, with a provisional header
  journal    a line for each save: {"done": images, "rows": rows, "bad":
             [[image, reason], ...] since the line before}
  lock       held by the process that works here

Rows reach the disk before the journal line that counts them, and only counted rows are
valid. The next start cuts off rows beyond them and an incomplete last line.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors, files

SAVE_SECONDS = 5.0  # between saves; the most work that a kill loses


class Unfinished:
    """The rows of one run, appended in order; a context manager that saves on exit.

    Args:
      out: The file that the run will write.
      settings: What the run computes, by readable names; JSON values.
      row_shape: Shape of one image's features.
      dtype: Dtype of the rows.
      count: Number of images of the run.
      overwrite: Whether to drop what another run has left instead of raising.

    Attributes:
      bad: {image: reason} of the images without a row.

    Raises:
      UserError: Another process works there, another run was left there, or the folder
        cannot be written.
    """

    def __init__(
        self,
        out: pathlib.Path,
        settings: Mapping[str, Any],
        *,
        row_shape: Sequence[int],
        dtype: Any,
        count: int,
        overwrite: bool,
    ):
        self._out, self._folder = out, folder_of(out)
        self._settings = _as_saved(settings)
        self._shape, self._dtype = tuple(row_shape), np.dtype(dtype)
        self._count, self._overwrite = count, overwrite
        self.bad: dict[int, str] = {}
        # (done, rows) in one tuple, so that no interruption separates them.
        self._position = self._saved = (0, 0)
        self._new_bad: list[tuple[int, str]] = []
        self._saved_at = time.monotonic()

    @property
    def done(self) -> int:
        """Number of images processed, from the first on."""
        return self._position[0]

    @property
    def rows(self) -> int:
        """Number of rows of those images."""
        return self._position[1]

    def __enter__(self) -> "Unfinished":
        with contextlib.ExitStack() as stack, self._writing():
            self._folder.mkdir(exist_ok=True)
            stack.enter_context(
                files.lock(
                    self._folder / "lock",
                    what=str(self._out),
                    fix="wait for it to end or choose another --out",
                )
            )
            self._refuse_another_run()
            with files.open_new(self._folder / "run.json") as file:
                file.write(json.dumps(self._settings, indent=2).encode())
            self._open(stack)
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        with self._opened:
            self.save()

    def _refuse_another_run(self) -> None:
        saved_settings = _saved_settings(self._folder)
        if saved_settings == self._settings:
            return
        if saved_settings is not None and not self._overwrite:
            keys = dict.fromkeys([*self._settings, *saved_settings])
            names = [k for k in keys if saved_settings.get(k) != self._settings.get(k)]
            raise errors.UserError(
                f"{self._folder} holds an unfinished run with different "
                f"{' and '.join(names) or 'settings'}: finish it with its own flags "
                "and files, choose another --out, or add --overwrite to discard it"
            )
        for name in ("journal", "rows.npy"):
            (self._folder / name).unlink(missing_ok=True)

    def _open(self, stack: contextlib.ExitStack) -> None:
        """Open rows and journal where the last save left them."""
        rows, journal = self._folder / "rows.npy", self._folder / "journal"
        for path in (rows, journal):
            path.touch()
        size, valid = rows.stat().st_size, 0
        for line in journal.read_bytes().splitlines(keepends=True):
            entry = _entry(line)
            if entry is None or self._end(entry["rows"]) > size:
                break
            self._position = entry["done"], entry["rows"]
            self.bad.update(entry["bad"])
            valid += len(line)
        self._saved = self._position
        self._rows = stack.enter_context(open(rows, "r+b", buffering=0))
        self._journal = stack.enter_context(open(journal, "r+b", buffering=0))
        self._rows.truncate(self._end(self.rows))
        self._journal.truncate(valid)
        _write(self._rows, _header(self._shape, self._dtype, self._count))
        self._rows.seek(self._end(self.rows))
        self._journal.seek(valid)

    def _end(self, rows: int) -> int:
        """Return the offset in bytes at which a number of rows ends."""
        row = int(np.prod(self._shape)) * self._dtype.itemsize
        return len(_header(self._shape, self._dtype, self._count)) + rows * row

    def append(self, rows: np.ndarray, *, done: int, bad: Mapping[int, str]) -> None:
        """Add the rows of the next images; save if `SAVE_SECONDS` have passed.

        Args:
          rows: Features [n, ...] of the images that could be read.
          done: Number of images processed so far, including these.
          bad: {image: reason} of the images that could not be read.

        Raises:
          UserError: The folder cannot be written.
        """
        with self._writing():
            flat = np.ascontiguousarray(rows, self._dtype).reshape(-1)
            _write(self._rows, flat.view(np.uint8))
        self.bad.update(bad)
        self._new_bad.extend(bad.items())
        self._position = done, self.rows + len(rows)
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Make all appended rows survive a kill."""
        if self._position != self._saved:
            done, rows = self._position
            bad = [item for item in self._new_bad if item[0] < done]
            entry = json.dumps({"done": done, "rows": rows, "bad": bad})
            with self._writing():
                os.fsync(self._rows.fileno())
                _write(self._journal, entry.encode() + b"\n")
                os.fsync(self._journal.fileno())
            self._saved, self._new_bad = (done, rows), []
        self._saved_at = time.monotonic()

    def finish_rows(self) -> pathlib.Path:
        """Complete the .npy file of all rows and return its path."""
        self.save()
        with self._writing():
            self._rows.seek(0)
            _write(self._rows, _header(self._shape, self._dtype, self.rows))
            os.fsync(self._rows.fileno())
        return self._folder / "rows.npy"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a failed write into a UserError."""
        try:
            yield
        except OSError as error:
            raise errors.UserError(
                f"cannot write {self._folder} ({error.strerror}): fix that or choose "
                "another --out; run the same command to resume"
            ) from error


def folder_of(out: pathlib.Path) -> pathlib.Path:
    """Return the folder in which a run works until its file is complete."""
    return out.with_name(f"{out.name}.partial")


def remove(out: pathlib.Path) -> None:
    """Remove the folder in which a run worked."""
    shutil.rmtree(folder_of(out), ignore_errors=True)


def remove_finished(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Remove what a finished run may have left, but nothing of another run.

    Args:
      out: The complete file of the run.
      settings: What the run computed.
    """
    folder = folder_of(out)
    if not folder.is_dir():
        return
    saved = _saved_settings(folder)
    if saved is not None and saved != _as_saved(settings):
        return  # of a run that is to replace the file
    with contextlib.suppress(errors.UserError, OSError):  # a run works there
        with files.lock(folder / "lock", what=str(out), fix=""):
            remove(out)


def remove_other(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Remove the folder of an unfinished run that computed something else.

    Args:
      out: The file that the run will write.
      settings: What this run computes.
    """
    saved = _saved_settings(folder_of(out))
    if saved is not None and saved != _as_saved(settings):
        remove(out)


def _saved_settings(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return the settings of the run in a folder; None if it was just begun."""
    try:
        return json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return None


def _as_saved(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(settings)))


def _header(shape: tuple[int, ...], dtype: np.dtype, count: int) -> bytes:
    """Return a .npy header; NumPy pads it to the same length for every count."""
    file = io.BytesIO()
    fields = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (count, *shape),
    }
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue()


def _entry(line: bytes) -> dict[str, Any] | None:
    """Parse a line of the journal; return None if it is incomplete."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
        bad = {int(image): str(reason) for image, reason in entry["bad"]}
        return {"done": int(entry["done"]), "rows": int(entry["rows"]), "bad": bad}
    except (ValueError, KeyError, TypeError):
        return None


def _write(file: Any, data: Any) -> None:
    """Write all data to an unbuffered file."""
    data = memoryview(data)
    while data:
        data = data[file.write(data) :]
