"""Trees of weights, without the rest of a state, in orbax folders."""

import glob
import pathlib
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from dinov2_jax import errors
from dinov2_jax.checkpoint import checksums, orbax_logging

_UNFINISHED = ".orbax-checkpoint-tmp"  # what orbax adds to a name until all is written


def read(folder: pathlib.Path, branch: str | None = None) -> Any:
    """Read weights from an orbax folder, and nothing else in it.

    Args:
      folder: A folder from `write`, or one step of a `Checkpointer`.
      branch: The tree to read from a state: "params" or "teacher_params". None reads
        the whole folder.

    Returns:
      Tree of arrays on the default device.

    Raises:
      UserError: The folder cannot be read or has no such branch.
    """
    sealed = False
    try:
        sealed = checksums.is_sealed(folder)
        problem = checksums.problem(folder) if sealed else None
    except OSError as error:
        raise orbax_logging.not_damaged(folder, error) from error
    if problem:
        raise errors.UserError(
            f"the checkpoint {folder} is damaged ({problem}): use another step, or "
            "write an export again"
        )
    checked = folder
    if (folder / "default").is_dir():
        folder = folder / "default"
    try:
        with orbax_logging.quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder).item_metadata.tree
            if branch:
                tree = {branch: tree[branch]}
            # Each process reads everything, whatever devices it has.
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
        has_branch = not isinstance(error, KeyError)
        if (sealed and has_branch) or orbax_logging.is_of_machine(error):
            raise orbax_logging.not_damaged(checked, error) from error
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(
            f"cannot read the checkpoint {folder} ({reason}): use another step"
        ) from error
    return jax.tree.map(jnp.asarray, restored[branch] if branch else restored)


def write(folder: pathlib.Path, weights: Any) -> None:
    """Write a tree of arrays atomically, replacing an existing one.

    Raises:
      UserError: The folder cannot be written.
    """
    try:
        with orbax_logging.quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), weights, force=True)
    except Exception as error:  # orbax and tensorstore raise many kinds
        remove_unfinished(folder.parent, folder.name)
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(f"cannot write {folder} ({reason})") from error


def remove_unfinished(parent: pathlib.Path, name: str = "*") -> None:
    """Remove what failed or killed calls of `write` left, which fills the disk.

    Args:
      parent: The folder that has the written folders.
      name: Name of one of these; "*" is all of them.
    """
    pattern = name if name == "*" else glob.escape(name)
    for left in parent.glob(f"{pattern}{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
