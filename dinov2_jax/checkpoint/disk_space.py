"""Check that the disk has room for the checkpoints of a run."""

import pathlib
import shutil
from typing import Any

import jax

from dinov2_jax import errors


def bytes_of(state: Any) -> int:
    """Return the most bytes that a tree of arrays or shapes can take on disk."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def free(path: pathlib.Path) -> int:
    """Return the free bytes of the file system of a folder; 0 if it is gone."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def needed_and_free(path: pathlib.Path, needed: int) -> str:
    """Describe the needed and the free space."""
    available = _format_bytes(free(path))
    return f"{_format_bytes(needed)} needed, {available} free at {path}"


def check(path: pathlib.Path, *, needed: int, keep_last: int) -> str:
    """Check the free disk space before a run starts.

    Args:
      path: The folder of the checkpoints.
      needed: Bytes of one checkpoint.
      keep_last: Number of checkpoints that are kept; one more exists during a save.

    Returns:
      A warning if not all of them will fit, else "".

    Raises:
      UserError: Not even one checkpoint fits.
    """
    available = free(path)
    if available < needed:
        raise errors.UserError(
            "not enough disk space for one checkpoint: "
            f"{needed_and_free(path, needed)}; free some or choose another --workdir"
        )
    existing = sum(p.name.isdecimal() for p in path.iterdir())
    missing = max(keep_last + 1 - existing, 1)
    if available >= missing * needed:
        return ""
    return (
        f"not enough disk space for {keep_last} checkpoints: "
        f"{needed_and_free(path, missing * needed)}; free some, or lower "
        f"--config.checkpoint.keep_last={keep_last}"
    )


def _format_bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
