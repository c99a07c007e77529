"""Whether all processes of a run see the same images."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinov2_jax import errors
from dinov2_jax.data.sources import base


def check(source: base.Source) -> None:
    """Check that all processes see the same images; all of them call it.

    Args:
      source: The images that this process sees.

    Raises:
      UserError: They do not, in every process.
    """
    if jax.process_count() == 1:
        return
    ours = np.frombuffer(
        int(source.pass_length).to_bytes(8, "little") + source.digest(), np.uint8
    )
    rows = np.asarray(multihost_utils.process_allgather(ours)).reshape(-1, len(ours))
    different = np.flatnonzero((rows != rows[0]).any(axis=1))
    if not len(different):
        return
    first, other = (
        int.from_bytes(bytes(rows[i, :8]), "little") for i in (0, different[0])
    )
    raise errors.UserError(
        f"process {different[0]} sees other images than process 0 ({other:,} and "
        f"{first:,} in a pass): make the data the same, under the same path, on every "
        "host, or read it from a shared file system"
    )
