"""Start and end of the loader's worker processes, and a record of their current work.

They hold no accelerator, use one thread each, leave signals to the trainer, and do not
outlive it. When one dies or hangs, the trainer names the image it was working on.
"""

import contextlib
import logging
import mmap
import multiprocessing
import os
import signal
import struct
import threading
import time

from dinov2_jax import errors
from dinov2_jax.data.decode import pillow_setup

# grain imports jax in every worker, and there may be a worker per core.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
GUARD = (
    "put your script's code below `if __name__ == '__main__':`, because each worker "
    "imports the script"
)
_SIZE = 4096  # bytes of a worker's file
_HEAD = struct.Struct("dH")  # monotonic seconds, bytes of the name


@contextlib.contextmanager
def environment():
    """Set the environment variables that processes started inside inherit.

    This process is not affected: its jax has already read them.
    """
    saved = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_main_guard() -> None:
    """Check that this process is not a worker that runs its parent's script.

    Raises:
      UserError: It is a worker that imports the script that started it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise errors.UserError(f"a worker process ran the whole script: {GUARD}")


def initialise(index: int, count: int, activity: "Activity | None" = None) -> None:
    """Set up a worker process; runs first in each.

    Args:
      index: Number of the worker.
      count: Number of workers.
      activity: The record in which the worker notes that it has started.
    """
    del index, count
    if activity is not None:
        activity.begin("")
    # The trainer handles signals to the whole process group: it saves first, which
    # takes a few more batches, and then closes the loader.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    logging.getLogger("absl").setLevel(logging.ERROR)
    pillow_setup.configure()
    # PR_SET_PDEATHSIG would fire when the thread that started this process ends, and
    # os.getppid() is wrong if the trainer was killed while this process started.
    parent = multiprocessing.parent_process().pid

    def leave_with_parent():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


class Activity:
    """Record of the current work of each process, in a small memory-mapped file each.

    Copies sent to workers write to the same folder; the file outlives even a process
    that was killed.

    Args:
      folder: An existing folder that nothing else uses.
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
        """Record what this process works on from now on; "" for nothing."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            path = os.path.join(self._folder, str(self._pid))
            self._map = None
            with contextlib.suppress(OSError), open(path, "w+b") as file:
                # In full: a page that a full disk cannot give would kill the process.
                file.write(bytes(_SIZE))
                file.flush()
                self._map = mmap.mmap(file.fileno(), _SIZE)
        if self._map is None:
            return
        content = name.encode("utf-8", "replace")[-(_SIZE - _HEAD.size) :]
        head = _HEAD.pack(time.monotonic(), len(content))
        self._map[: _HEAD.size + len(content)] = head + content

    def has(self, pid: int) -> bool:
        """Return whether a process has begun anything."""
        return os.path.exists(os.path.join(self._folder, str(pid)))

    def of(self, pid: int) -> tuple[str, float]:
        """Return (what a process works on, for how many seconds), or ("", 0.0)."""
        try:
            with open(os.path.join(self._folder, str(pid)), "rb") as file:
                content = file.read(_SIZE)
        except OSError:
            return "", 0.0
        if len(content) < _SIZE:
            return "", 0.0
        since, length = _HEAD.unpack_from(content)
        name = content[_HEAD.size : _HEAD.size + length].decode("utf-8", "replace")
        return name, time.monotonic() - since if name else 0.0
