"""Checkpoints that are not what they were, and others that do not count any more."""

import contextlib
import pathlib
import time

import orbax.checkpoint as ocp

from dinov2_jax import errors
from dinov2_jax.checkpoint import checksums


def set_aside(path: pathlib.Path) -> list[str]:
    """Moves damaged checkpoints away, from the newest on to the first good one.

    Returns:
      What was found, a line each.

    Raises:
      UserError: None is good; all stay where they are.
    """
    steps = [p for p in path.iterdir() if p.name.isdecimal() and p.is_dir()]
    damaged, lines = {}, []
    for folder in sorted(steps, key=lambda p: -int(p.name)):
        if not checksums.is_sealed(folder):
            # Killed within the moment between the save and its seal, or written by an
            # earlier version; what orbax calls unfinished is no checkpoint.
            if ocp.utils.is_checkpoint_finalized(folder) and any(folder.iterdir()):
                lines.append(f"checkpoint {folder} has no checksums: it is trusted")
                with contextlib.suppress(OSError):  # from now on it has
                    checksums.write(folder)
                break
            damaged[folder] = "was not finished"
            continue
        problem = checksums.problem(folder)
        if problem is None:
            break
        damaged[folder] = problem
    else:
        if damaged:
            named = "; ".join(f"{f.name}: {why}" for f, why in damaged.items())
            raise errors.UserError(
                f"no checkpoint in {path} is intact ({named}): restore one from a "
                "copy, or remove them all to begin anew"
            )
    for folder, why in damaged.items():
        target = move_away(folder)
        lines.append(f"checkpoint {folder} is damaged ({why}): moved to {target}")
    return lines


def move_away(folder: pathlib.Path) -> pathlib.Path:
    """Moves a checkpoint to WORKDIR/damaged_checkpoints; returns where it is then."""
    away = folder.parent.with_name("damaged_checkpoints")
    away.mkdir(exist_ok=True)
    target = away / f"{folder.name}-{time.strftime('%Y%m%dT%H%M%S')}"
    return folder.rename(target)
