"""Seconds of a call, and what many of them say."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def samples(
    call: Callable[[], Any],
    *,
    count: int,
    warmup: int,
    inner: int = 1,
    finish: Callable[[], Any] = lambda: None,
) -> list[float]:
    """Wall-clock seconds of one call, `count` times.

    Args:
      call: What is measured; may only start work.
      count: Samples.
      warmup: Calls before them that do not count.
      inner: Calls a sample, so that an accelerator is never without work.
      finish: Waits for the work that was started; once a sample.

    Returns:
      Seconds a call, one number a sample.
    """
    for _ in range(warmup):
        call()
    finish()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        for _ in range(inner):
            call()
        finish()
        seconds.append((time.perf_counter() - start) / inner)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least, greatest and number of samples."""
    return {
        "median": statistics.median(seconds),
        "low": min(seconds),
        "high": max(seconds),
        "samples": len(seconds),
    }
