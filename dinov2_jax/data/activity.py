"""What each loader worker is at, for the trainer to say when one dies or is stuck."""

import mmap
import os
import struct
import time

_SIZE = 4096  # bytes of a worker's file
_HEAD = struct.Struct("dH")  # monotonic seconds, bytes of the name


class Activity:
    """A small file for each process, mapped into memory by whoever writes.

    Copies sent to workers write to the same folder; a page of memory outlives even a
    process that was killed.

    Args:
      folder: exists, and nobody else uses it.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._map: mmap.mmap | None = None
        self._pid = 0

    def __getstate__(self):
        return self._folder

    def __setstate__(self, folder):
        self.__init__(folder)

    def begin(self, name: str) -> None:
        """Notes what this process works on from now on; "" for nothing."""
        if self._map is None or self._pid != os.getpid():
            self._pid = os.getpid()
            path = os.path.join(self._folder, str(self._pid))
            with open(path, "w+b") as file:
                file.truncate(_SIZE)
                self._map = mmap.mmap(file.fileno(), _SIZE)
        content = name.encode("utf-8", "replace")[-(_SIZE - _HEAD.size) :]
        head = _HEAD.pack(time.monotonic(), len(content))
        self._map[: _HEAD.size + len(content)] = head + content

    def of(self, pid: int) -> tuple[str, float]:
        """(what a process works on, for how many seconds); ("", 0.0) if unknown."""
        try:
            with open(os.path.join(self._folder, str(pid)), "rb") as file:
                content = file.read(_SIZE)
        except OSError:
            return "", 0.0
        since, length = _HEAD.unpack_from(content)
        name = content[_HEAD.size : _HEAD.size + length].decode("utf-8", "replace")
        return name, time.monotonic() - since if name else 0.0
