"""Batches built ahead of time by worker processes or by one thread, with grain.

`batch_builder` describes a batch. If a worker dies, a file system hangs or preparing an
image raises an exception, the error names the image.
"""

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import os
import queue
import threading
import time
import weakref

import grain
import grain.experimental
import numpy as np
from absl import flags

from dinov2_jax import errors
from dinov2_jax.data import batch_builder, batch_spec, shared_batches
from dinov2_jax.data import workers as workers_lib

_LOOK_EVERY = 1.0  # seconds between checks of the workers while waiting
_SLOW = 10.0  # seconds at one image, after which it is named
_MAX_SLOW = 10  # images that are named


def make_loader(
    config,
    source,
    *,
    start_step: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    skips: tuple[tuple[int, int], ...] = (),
) -> "Loader":
    """Return an iterator over the batches of consecutive steps; work starts at once.

    Args:
      config: The configuration of the run.
      source: The images, from `registry.make_source`.
      start_step: The first step.
      num_steps: Number of batches, from the first step on.
      process_index: Index of this process.
      process_count: Number of processes.
      skips: Skipped batches, from `runtime.rollback.Rollbacks`.

    Raises:
      UserError: See `batch_builder.make_batch_builder`.
    """
    builder = batch_builder.make_batch_builder(
        config,
        source,
        process_index=process_index,
        process_count=process_count,
        skips=skips,
    )
    spec = batch_spec.batch_spec(config).values()  # of the largest batch
    num_bytes = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in spec)
    return Loader(
        builder,
        start_step=start_step,
        num_steps=num_steps,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        batch_bytes=num_bytes // process_count,
        timeout=config.data.timeout,
    )


class Loader:
    """Iterator over batches built ahead of time by processes or one thread.

    Close it (or use it in a `with` statement), so that no worker outlives it.
    """

    def __init__(
        self,
        builder: batch_builder.BatchBuilder,
        *,
        start_step: int,
        num_steps: int,
        workers: int,
        prefetch: int,
        batch_bytes: int,
        timeout: float,
    ):
        workers_lib.check_main_guard()
        workers = min(workers, num_steps)
        prefetch = max(prefetch, 1)
        self._timeout = timeout
        self._slow: set[str] = set()
        folder = shared_batches.Folder()
        self._activity = workers_lib.Activity(folder.path)
        builder = dataclasses.replace(builder, activity=self._activity)
        steps = grain.MapDataset.range(start_step, start_step + num_steps)
        dataset = steps.map(builder)
        # Grain keeps `prefetch` batches on both sides of a worker's queue. If shared
        # memory is too small for them (64 MB in many containers), they use a pipe.
        if workers and folder.free() > workers * 2 * (prefetch + 1) * batch_bytes:
            dataset = dataset.map(shared_batches.Packer(folder.path))
        dataset = dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
        if workers:
            # Turn off grain's own shared memory; see `shared_batches`.
            options = grain.experimental.DatasetOptions(min_shm_size=2**62)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=workers, per_worker_buffer_size=prefetch
                ),
                worker_init_fn=functools.partial(
                    workers_lib.initialise, activity=self._activity
                ),
            )
        else:
            dataset = grain.experimental.ThreadPrefetchIterDataset(
                dataset, prefetch_buffer_size=prefetch
            )
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # not under app.run; grain reads flags
        iterator = iter(dataset)
        # Grain creates the workers' iterators at the first request for a state or an
        # element. Requesting it now starts all workers below, in their environment.
        with shared_batches.semaphores():
            iterator.get_state()
        self._asked: queue.SimpleQueue = queue.SimpleQueue()
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        # Also runs when the loader is garbage-collected or the interpreter exits. The
        # iterator is in a list, so that emptying it releases the iterator.
        self._open = [iterator]
        self._workers: list[multiprocessing.Process] = []
        self._close = weakref.finalize(
            self, _close, self._open, self._asked, folder, self._workers
        )
        started = set()
        with workers_lib.environment():
            others = set(multiprocessing.active_children())
            with shared_batches.semaphores():
                iterator.start_prefetch()
            deadline = time.monotonic() + 60  # grain starts them from threads
            while len(started) < workers and time.monotonic() < deadline:
                time.sleep(0.01)
                started |= set(multiprocessing.active_children()) - others
                self._workers[:] = sorted(started, key=lambda worker: worker.pid)
        # This thread waits for grain, which may never return.
        threading.Thread(
            target=_answer, args=(iterator, self._asked, self._answers), daemon=True
        ).start()

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Return the next batch.

        Raises:
          UserError: A worker died, or no batch came for `data.timeout` seconds.
        """
        if not self._open:
            raise ValueError("the loader is closed")
        start = time.monotonic()
        self._asked.put(True)
        while True:
            with contextlib.suppress(queue.Empty):
                batch, error = self._answers.get(timeout=_LOOK_EVERY)
                break
            self._check_health(time.monotonic() - start)
        if error is None:
            return batch
        if not isinstance(error, StopIteration | errors.UserError):
            self._check_for_dead_workers()  # which grain may be reporting
        raise error

    def _check_health(self, waited: float) -> None:
        """Raise UserError if a worker died or the timeout has passed."""
        self._check_for_dead_workers()
        pids = [worker.pid for worker in self._workers] or [os.getpid()]
        at = [self._activity.of(pid) for pid in pids]
        self._name_slow(at)
        if self._timeout and waited > self._timeout:
            at = [f"{name} for {seconds:.0f} s" for name, seconds in at if name]
            self._abandon()
            raise errors.UserError(
                f"no batch for {waited:.0f} s; the loader is reading "
                f"{', '.join(at) or 'no image'}: check that the file system "
                "responds, or raise --config.data.timeout (seconds); then run the same "
                "command again",
                exit_code=errors.TRY_AGAIN,
            )

    def _name_slow(self, at: list[tuple[str, float]]) -> None:
        """Log images that take a worker long; only the first few."""
        for name, seconds in at:
            new = name and name not in self._slow and len(self._slow) < _MAX_SLOW
            if new and seconds > _SLOW:
                self._slow.add(name)
                logging.warning(
                    "training waits for %s, for %.0f s: make large images smaller "
                    "(python -m dinov2_jax.data shard PATH DST --resize 512) or leave "
                    "them out (--config.data.max_pixels)",
                    name,
                    seconds,
                )

    def _check_for_dead_workers(self) -> None:
        for number, worker in enumerate(self._workers):
            if worker.exitcode:
                if worker.exitcode > 0 and not self._activity.has(worker.pid):
                    self._abandon()
                    raise errors.UserError(
                        f"loader worker {number} of {len(self._workers)} could not "
                        f"start, its error is above; {workers_lib.GUARD}"
                    )
                name, _ = self._activity.of(worker.pid)
                how = f"exit code {worker.exitcode}"
                if worker.exitcode < 0:
                    how = f"signal {-worker.exitcode}"
                self._abandon()
                raise errors.UserError(
                    f"loader worker {number} of {len(self._workers)} died of {how} "
                    f"{f'at {name}' if name else 'between two images'}: if it was "
                    "killed for memory (see dmesg), lower --config.data.workers or "
                    "data.prefetch; then run the same command again",
                    exit_code=errors.TRY_AGAIN,
                )

    def _abandon(self) -> None:
        """Kill the workers, which would keep `close` waiting."""
        for worker in self._workers:
            worker.kill()
        if not self._workers:
            self._open.clear()  # a stuck thread cannot be killed

    def close(self) -> None:
        """Stop the workers. May be called twice."""
        self._close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _answer(iterator, asked, answers) -> None:
    while asked.get():
        try:
            answers.put((shared_batches.unpack(next(iterator)), None))
        except BaseException as error:  # of any kind: `__next__` raises it
            answers.put((None, error))


def _close(
    iterators: list,
    asked: queue.SimpleQueue,
    folder: shared_batches.Folder,
    workers: list[multiprocessing.Process],
) -> None:
    asked.put(False)
    try:
        while iterators:
            iterators.pop().close()
    finally:
        # They have ended, unless a second Ctrl-C came. They ignore what Python sends
        # them at exit, and it would then wait for them forever.
        for worker in workers:
            worker.kill()
        folder.remove()
