"""Quarantine for checkpoints that are damaged or no longer valid."""

import contextlib
import pathlib
import time

import orbax.checkpoint as ocp

from dinov2_jax import errors
from dinov2_jax.checkpoint import checksums


def set_aside(path: pathlib.Path) -> list[str]:
    """Move the damaged checkpoints that are newer than the newest good one.

    They go to WORKDIR/damaged_checkpoints.

    Args:
      path: The folder of the checkpoints.

    Returns:
      One line per finding.

    Raises:
      UserError: No checkpoint is good; none is moved.
    """
    steps = [p for p in path.iterdir() if p.name.isdecimal() and p.is_dir()]
    damaged, lines = {}, []
    for folder in sorted(steps, key=lambda p: -int(p.name)):
        if not checksums.is_sealed(folder):
            # The run was killed between the save and its seal, or an earlier version
            # wrote it. A folder that orbax has not finalized is not a checkpoint.
            if ocp.utils.is_checkpoint_finalized(folder) and any(folder.iterdir()):
                lines.append(f"checkpoint {folder} has no checksums: it is trusted")
                with contextlib.suppress(OSError):  # seal it now
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
    """Move a checkpoint to WORKDIR/damaged_checkpoints and return its new path."""
    away = folder.parent.with_name("damaged_checkpoints")
    away.mkdir(exist_ok=True)
    target = away / f"{folder.name}-{time.strftime('%Y%m%dT%H%M%S')}"
    return folder.rename(target)
