"""The console of a program, which must never be the reason why its work is lost."""

import io
import os
import sys
from typing import Any, TextIO

OUTPUT = "standard output"  # the file name of its errors
_DESCRIPTORS = (0, 1, 2)


class Messages:
    """A text stream for messages, such as standard error, that never fails.

    The terminal of a long run closes, the reader of a pipe ends, the disk of a log is
    full: what cannot be written is dropped, and the program continues.

    Args:
      stream: The stream to write to; None if the process has none.

    Attributes:
      failure: Why the first message that was dropped could not be written, or "".
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self.failure = "" if stream is not None else "it is closed"

    def write(self, text: str) -> int:
        """Write text, or drop it if that fails."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self._note(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, as far as possible."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._note(error)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it was closed
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _note(self, error: Exception) -> None:
        self.failure = self.failure or getattr(error, "strerror", None) or str(error)


class Results:
    """Standard output, with errors that name it.

    Args:
      stream: The stream to write to.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text.

        Raises:
          OSError: The text cannot be written; the error names the stream.
        """
        try:
            return self._stream.write(text)
        except OSError as error:
            error.filename = OUTPUT
            raise

    def flush(self) -> None:
        """Write what is buffered; raises as `write` does."""
        try:
            self._stream.flush()
        except OSError as error:
            error.filename = OUTPUT
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def messages(stream: TextIO | None) -> Messages:
    """Return a stream as one that never fails."""
    return stream if isinstance(stream, Messages) else Messages(stream)


def guard() -> None:
    """Guard the standard streams of this process; call it when a program starts."""
    # A file that is opened later would get the number of a closed stream, and the
    # messages of C++ libraries would go into it.
    for descriptor in _DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stderr = messages(sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not be UTF-8
    if sys.stdout is not None and not isinstance(sys.stdout, Results):
        sys.stdout = Results(sys.stdout)
