"""State of a training in one file, from which a killed run resumes."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from dinov2_jax import errors, files


def save(
    path: pathlib.Path, state: Any, *, done: int, settings: dict[str, Any]
) -> None:
    """Write a state, whole or not at all.

    Args:
      path: Path of the file.
      state: Tree of arrays.
      done: Number of steps done.
      settings: All that the run depends on; values that JSON knows.

    Raises:
      UserError: The file cannot be written.
    """
    leaves = jax.device_get(jax.tree.leaves(state))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(path) as file:
            np.savez(
                file,
                done=done,
                settings=json.dumps(settings),
                **{f"leaf{i}": leaf for i, leaf in enumerate(leaves)},
            )
    except OSError as error:
        raise errors.UserError(
            f"cannot write {path} ({error.strerror or error}): choose another --out"
        ) from error


def restore(
    path: pathlib.Path, state: Any, *, settings: dict[str, Any], what: str
) -> tuple[int, Any]:
    """Return the number of steps done and the state after them.

    Args:
      path: Path of the file; it need not be there.
      state: The state before the first step, a tree of arrays.
      settings: All that the run depends on.
      what: Name of what is trained, for messages.

    Raises:
      UserError: The file is of a run with other settings.
    """
    if not path.exists():
        return 0, state
    with np.load(path, allow_pickle=False) as saved:
        if json.loads(str(saved["settings"])) != json.loads(json.dumps(settings)):
            raise errors.UserError(
                f"{path} is of a {what} with other settings: choose another --out, or "
                "remove that file"
            )
        leaves = [saved[f"leaf{i}"] for i in range(len(jax.tree.leaves(state)))]
        done = int(saved["done"])
    return done, jax.tree.unflatten(jax.tree.structure(state), leaves)
