"""Whether all processes of a run see the same images and read the same weights."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinov2_jax import errors
from dinov2_jax.data.sources import base


def check_images(source: base.Source) -> None:
    """Check that all processes see the same images; all of them call it.

    Args:
      source: The images that this process sees.

    Raises:
      UserError: They do not, in every process.
    """
    length = int(source.pass_length).to_bytes(8, "little")
    rows, other = _compare(length + source.digest())
    if not other:
        return
    ours, theirs = (int.from_bytes(bytes(rows[i][:8]), "little") for i in (0, other))
    raise errors.UserError(
        f"process {other} sees other images than process 0 ({theirs:,} and {ours:,} in "
        "a pass): make the data the same, under the same path, on every host, or read "
        "it from a shared file system"
    )


def check_weights(field: str, digest: str) -> None:
    """Check that all processes read the same weights; all of them call it.

    Args:
      field: The config field that names them.
      digest: Digest of those that this process read, of the same length on all
        processes.

    Raises:
      UserError: They did not, in every process.
    """
    _, other = _compare(digest.encode())
    if other:
        raise errors.UserError(
            f"process {other} read other weights from {field} than process 0: make the "
            "file the same on every host, or read it from a shared file system"
        )


def _compare(ours: bytes) -> tuple[np.ndarray, int]:
    """Return the bytes of all processes, and the first that has others; 0: none."""
    ours = np.frombuffer(ours, np.uint8)
    if jax.process_count() == 1:
        return ours[None], 0
    rows = np.asarray(multihost_utils.process_allgather(ours)).reshape(-1, len(ours))
    different = np.flatnonzero((rows != rows[0]).any(axis=1))
    return rows, int(different[0]) if len(different) else 0
