"""Work on many items in processes that may die, of which only one item is lost.

`concurrent.futures` gives up all of its work when one process is killed, and waits
forever for one that hangs. A file that crashes a decoder, fills the memory or never
ends must not affect other files. Here every process has its own pipe; those of pebble
share one, whose lock is lost if a process is killed while it sends.
"""

import collections
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from dinov2_jax import errors
from dinov2_jax.data import workers as data_workers
from dinov2_jax.data.decode import pillow_setup

_AHEAD = 32  # results per process that may wait for an earlier one
_CHUNK = 8  # items that a process gets at a time
_LOOK = 1.0  # seconds after which the time is looked at
_STOPPED = 5.0  # seconds between two looks after which this process had been stopped
_START_SECONDS = 120.0  # time limit for a process to start, on a busy machine


class Lost:
    """Placeholder for the result of an item that its process did not finish.

    Attributes:
      reason: The reason, in words.
    """

    def __init__(self, reason: str):
        self.reason = reason


def in_order(
    work: Callable[[int], Any],
    items: range,
    *,
    processes: int,
    seconds: float = 120.0,
) -> Iterator[tuple[int, Any]]:
    """Call a function for each item, in processes; yield the results in order.

    Args:
      work: The function; it and its results can be pickled.
      items: The numbers to call it with.
      processes: Number of processes; 0 calls it in this one, unprotected.
      seconds: Time limit for an item.

    Yields:
      (item, result), where a result may be `Lost`.

    Raises:
      UserError: A process cannot start.
    """
    if not processes:
        for item in items:
            yield item, work(item)
        return
    data_workers.check_main_guard()
    todo: collections.deque = collections.deque()  # returned by processes that died
    unclaimed = iter(items)
    claimed: list[int] = []
    done: dict[int, Any] = {}
    workers = [_Worker(work) for _ in range(min(processes, max(len(items), 1)))]
    first = 0  # number of results yielded
    looked = time.monotonic()

    def assign(worker: _Worker) -> None:
        """Give an idle worker its next items, unless results are too far ahead."""
        chunk = []
        while len(chunk) < _CHUNK:
            if todo:
                chunk.append(todo.popleft())
                continue
            if len(claimed) - first >= _AHEAD * len(workers):
                break
            item = next(unclaimed, None)
            if item is None:
                break
            claimed.append(item)
            chunk.append(item)
        if chunk:
            worker.give(chunk)

    try:
        while True:
            for worker in workers:
                if not worker.pending:
                    assign(worker)
            while first < len(claimed) and claimed[first] in done:
                item = claimed[first]
                first += 1
                yield item, done.pop(item)
            busy = [worker for worker in workers if worker.pending]
            if not busy:
                if first == len(claimed) == len(items):
                    return
                continue
            wait = min(worker.deadline(seconds) for worker in busy) - time.monotonic()
            ready = multiprocessing.connection.wait(
                [worker.connection for worker in busy], min(max(wait, 0), _LOOK)
            )
            before, looked = looked, time.monotonic()
            if looked - before > _STOPPED:  # and so, perhaps, were the workers
                for worker in busy:
                    worker.since = looked
            for worker in busy:
                reason = ""
                if worker.connection in ready:
                    try:
                        for item, result in worker.results():
                            done[item] = result
                    except (EOFError, ConnectionError):
                        reason = worker.last_words()
                elif time.monotonic() >= worker.deadline(seconds):
                    reason = f"took longer than {seconds:g} s"
                if reason:
                    if not worker.ready:
                        raise errors.UserError(
                            f"cannot start a process ({reason}; its error is above): "
                            f"{data_workers.GUARD}"
                        )
                    if worker.pending:
                        done[worker.pending.popleft()] = Lost(reason)
                    todo.extendleft(reversed(worker.pending))
                    worker.restart()
    finally:
        for worker in workers:
            worker.stop()


class _Failure:
    def __init__(self, error: Exception):
        self.error = error


class _Worker:
    """A process and the items that it has not finished."""

    def __init__(self, work: Callable[[int], Any]):
        self._work = work
        self.pending: collections.deque[int] = collections.deque()
        self._start()

    def _start(self) -> None:
        # Spawned: a fork would inherit the locks of other threads.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(self._work, theirs, os.getpid()), daemon=True
        )
        self.process.start()
        theirs.close()
        self.ready = False
        self.since = time.monotonic()

    def give(self, items: list[int]) -> None:
        self.pending.extend(items)
        self.since = time.monotonic()
        try:
            self.connection.send(items)
        except (BrokenPipeError, ConnectionError):
            pass  # noticed at the next read

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield what has arrived; raises EOFError if the process has ended."""
        while True:
            item, result = self.connection.recv()
            self.since = time.monotonic()
            if item is None:
                self.ready = True
            else:
                self.pending.popleft()
                if isinstance(result, _Failure):
                    raise result.error
                yield item, result
            if not self.connection.poll():
                return

    def deadline(self, seconds: float) -> float:
        return self.since + (seconds if self.ready else _START_SECONDS)

    def last_words(self) -> str:
        """Return why the process has ended."""
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"the decoder was killed by {signal.Signals(-code).name}"
        return f"the decoder's process ended with code {code}"

    def restart(self) -> None:
        self.stop()
        self.pending.clear()
        self._start()

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(work, connection, parent: int) -> None:
    # The parent handles the signals to the whole group, and ends its processes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pillow_setup.configure()

    def leave_with_parent():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    connection.send((None, None))  # ready
    while True:
        try:
            items = connection.recv()
        except (EOFError, OSError):
            return
        for item in items:
            try:
                result = work(item)
            except Exception as error:  # raised in the parent; bad images are results
                result = _Failure(error)
            try:
                connection.send((item, result))
            except (BrokenPipeError, ConnectionError):
                return
