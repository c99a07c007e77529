"""A file that grows by whole records, also where the disk is full for a while."""

import contextlib
import logging
import os
import pathlib


class RecordFile:
    """Appends records, each whole or not at all.

    What cannot be written waits in memory for the next record, and is said once.

    Args:
      path: The file, made where it is missing.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        # Unbuffered and in append mode, so that a record is a single write.
        self._file = open(path, "ab", buffering=0)
        self._waiting = b""
        self._said = False

    def write(self, record: bytes) -> None:
        """Writes a record after those that wait."""
        self._waiting += record
        size = os.fstat(self._file.fileno()).st_size
        left = memoryview(self._waiting)
        try:
            while left:  # of a write that meets the end of the disk, a part is done
                left = left[self._file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            self._say(error)
        else:
            self._waiting = b""

    def sync(self) -> None:
        """Returns once all records are on the disk, or cannot be."""
        self.write(b"")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._say(error)

    def close(self) -> None:
        """Closes the file; may be called again."""
        if not self._file.closed:
            self.write(b"")
            self._file.close()

    def _say(self, error: OSError) -> None:
        if not self._said:
            logging.warning(
                "cannot write to %s (%s): what belongs there waits in memory",
                self._path,
                error.strerror,
            )
        self._said = True
