"""Orbax's failures: short reasons for errors, and no noise on the console."""

import contextlib
import logging
import os
import re
import sys
import warnings
from typing import Any


def reason(error: Exception) -> str:
    """Return why a save failed, as the operating system's message if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's format
    if code:
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200]


def hush_threads() -> None:
    """Silence what orbax's threads print about failures that are also raised."""
    logging.getLogger("absl").addFilter(_is_not_from_orbax)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _unraisable


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def quiet():
    """Silence what orbax logs about a damaged checkpoint before it raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
