"""Orbax's failures: short reasons, whose fault they are, and a quiet console."""

import contextlib
import logging
import os
import pathlib
import re
import sys
import warnings
from typing import Any

from dinov2_jax import errors


def reason(error: Exception) -> str:
    """Return why a save failed, as the operating system's message if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's format
    if code:
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200]


def is_of_machine(error: Exception) -> bool:
    """Return whether a disk, a file system or memory failed, not what was read."""
    if isinstance(error, OSError):
        lasting = (
            *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
            PermissionError,
        )
        return error.errno is not None and not isinstance(error, lasting)
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def not_damaged(folder: pathlib.Path, error: Exception) -> errors.UserError:
    """Return the error of a checkpoint that is good but could not be read."""
    if isinstance(error, PermissionError):
        return errors.UserError(
            f"cannot read the checkpoint {folder} ({reason(error)}): change the "
            "permissions of its files"
        )
    return errors.UserError(
        f"cannot read the checkpoint {folder} ({reason(error)}), which is not damaged: "
        "this machine, its memory or its disk failed; run the same command again",
        exit_code=errors.TRY_AGAIN,
    )


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
