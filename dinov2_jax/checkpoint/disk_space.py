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
    """Describe the space that is needed and the space that is free."""
    return f"{_words(needed)} needed, {_words(free(path))} free at {path}"


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
    there = free(path)
    if there < needed:
        raise errors.UserError(
            f"no room for one checkpoint: {needed_and_free(path, needed)}; free some "
            "or choose another --workdir"
        )
    saved = sum(p.name.isdecimal() for p in path.iterdir())
    missing = max(keep_last + 1 - saved, 1)
    if there >= missing * needed:
        return ""
    return (
        f"the disk will be full before {keep_last} checkpoints are kept: "
        f"{needed_and_free(path, missing * needed)}; free some, or lower "
        f"--config.checkpoint.keep_last={keep_last}"
    )


def _words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
