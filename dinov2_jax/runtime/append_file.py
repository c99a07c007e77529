"""An append-only file of whole records that survives a full disk."""

import contextlib
import logging
import os
import pathlib


class RecordFile:
    """Appends records, each whole or not at all.

    A record that cannot be written is kept in memory and tried again with the next
    one. The first failure is logged.

    Args:
      path: The file, created if it is missing.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        # Unbuffered and in append mode, so that a record is a single write.
        self._file = open(path, "ab", buffering=0)
        self._waiting = b""
        self._warned = False

    def write(self, record: bytes) -> None:
        """Write a record, after any that are still pending."""
        self._waiting += record
        size = os.fstat(self._file.fileno()).st_size
        left = memoryview(self._waiting)
        try:
            while left:  # a write that fills the disk is cut short
                left = left[self._file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            self._warn(error)
        else:
            self._waiting = b""

    def sync(self) -> None:
        """Flush all records to disk, as far as possible."""
        self.write(b"")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Close the file; may be called more than once."""
        if not self._file.closed:
            self.write(b"")
            self._file.close()

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logging.warning(
                "cannot write to %s (%s): rows are kept in memory until it works",
                self._path,
                error.strerror,
            )
        self._warned = True
