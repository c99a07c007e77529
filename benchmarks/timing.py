"""Timing of calls, and statistics over the samples."""

import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

TURN = "BENCHMARKS_TURN"  # environment variable: a worker's socket for taking turns


def samples(
    call: Callable[[], Any],
    *,
    count: int,
    warmup: int,
    inner: int = 1,
    finish: Callable[[], Any] = lambda: None,
) -> list[float]:
    """Measure the wall-clock seconds of a call, `count` times.

    In a process of `workers.alternate` each sample waits for its turn, and there are at
    most as many samples as turns.

    Args:
      call: The function to measure; it may start asynchronous work.
      count: Number of samples.
      warmup: Number of untimed calls before them.
      inner: Calls per sample; several keep an accelerator busy.
      finish: Waits for the started work, once per sample.

    Returns:
      Seconds per call, one number per sample.
    """
    turn = None
    if TURN in os.environ:
        turn = socket.socket(fileno=int(os.environ[TURN]))
    for _ in range(warmup):
        call()
    finish()
    seconds = []
    for _ in range(count):
        if turn and not _next_turn(turn):
            break
        start = time.perf_counter()
        for _ in range(inner):
            call()
        finish()
        seconds.append((time.perf_counter() - start) / inner)
    if turn:
        _next_turn(turn)  # wait until the others are done
        turn.close()
    return seconds


def _next_turn(turn: socket.socket) -> bool:
    """Wait for the next turn; return False if there are no more."""
    turn.send(b".")
    return bool(turn.recv(1))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, minimum, maximum and number of samples."""
    return {
        "median": statistics.median(seconds),
        "low": min(seconds),
        "high": max(seconds),
        "samples": len(seconds),
    }
