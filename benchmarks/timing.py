"""Seconds of a call, and what many of them say."""

import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

TURN = "BENCHMARKS_TURN"  # of a worker that takes turns: a socket to who gives them


def samples(
    call: Callable[[], Any],
    *,
    count: int,
    warmup: int,
    inner: int = 1,
    finish: Callable[[], Any] = lambda: None,
) -> list[float]:
    """Wall-clock seconds of one call, `count` times.

    In a process of `workers.alternate` each waits for its turn, and there are no more
    of them than turns.

    Args:
      call: What is measured; may only start work.
      count: Samples.
      warmup: Calls before them that do not count.
      inner: Calls a sample, so that an accelerator is never without work.
      finish: Waits for the work that was started; once a sample.

    Returns:
      Seconds a call, one number a sample.
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
        _next_turn(turn)  # those of others are not over yet
        turn.close()
    return seconds


def _next_turn(turn: socket.socket) -> bool:
    """Waits for it; False when there are no more."""
    turn.send(b".")
    return bool(turn.recv(1))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least, greatest and number of samples."""
    return {
        "median": statistics.median(seconds),
        "low": min(seconds),
        "high": max(seconds),
        "samples": len(seconds),
    }
