"""What orbax says of a failure: turned into a reason, and kept from the console."""

import contextlib
import logging
import os
import re
import sys
import warnings
from typing import Any


def reason(error: Exception) -> str:
    """Why a save failed, in the words of the system where they are known."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore says it
    if code:
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200]


def hush_threads() -> None:
    """Keeps from the console what orbax's threads say of a failure that is raised."""
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _unraisable


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def quiet():
    """Without the lines that orbax logs about a damaged checkpoint before it raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
