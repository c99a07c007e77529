"""Trees of weights alone, in folders that orbax reads and writes."""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from dinov2_jax import errors
from dinov2_jax.checkpoint import checksums, orbax_logging


def read(folder: pathlib.Path, branch: str | None = None) -> Any:
    """Weights out of a folder that orbax wrote, the rest left on disk.

    Args:
      folder: Of `write`, or of one step of a `Checkpointer`.
      branch: Of a state, the tree that is wanted: "params" or "teacher_params".

    Returns:
      Tree of arrays on the default device.

    Raises:
      UserError: The folder cannot be read or has no such branch.
    """
    if checksums.is_sealed(folder):
        problem = checksums.problem(folder)
        if problem:
            raise errors.UserError(
                f"the checkpoint {folder} is damaged ({problem}): use another step"
            )
    if (folder / "default").is_dir():
        folder = folder / "default"
    try:
        with orbax_logging.quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            if branch:
                tree = {branch: tree[branch]}
            # By each process for itself, whatever devices there are.
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            restored = checkpointer.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=tree,
                    restore_args=jax.tree.map(lambda _: as_numpy, tree),
                    partial_restore=True,
                ),
            )
    except Exception as error:  # orbax and tensorstore raise many kinds
        sys.unraisablehook = lambda unraisable: None
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(
            f"cannot read the checkpoint {folder} ({reason}): use another step"
        ) from error
    return jax.tree.map(jnp.asarray, restored[branch] if branch else restored)


def write(folder: pathlib.Path, weights: Any) -> None:
    """Writes a tree of arrays, whole or not at all; replaces what was there.

    Raises:
      UserError: It cannot be written.
    """
    try:
        with orbax_logging.quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), weights, force=True)
    except Exception as error:  # orbax and tensorstore raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(f"cannot write {folder} ({reason})") from error
