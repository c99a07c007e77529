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
      UserError: No checkpoint is good, or one cannot be read for now; none is moved.
    """
    try:
        damaged, lines = _find_damaged(path)
    except PermissionError as error:
        raise errors.UserError(
            f"cannot read {error.filename or path} ({error.strerror}): change its "
            "permissions; no checkpoint was moved"
        ) from error
    except OSError as error:
        raise errors.UserError(
            f"cannot read {error.filename or path} ({error.strerror or error}), which "
            "does not show that a checkpoint is damaged, so none was moved: run the "
            "same command again when the disk answers, or, if that file is lost, "
            "remove the folder of its step to resume from the one before it",
            exit_code=errors.TRY_AGAIN,
        ) from error
    for folder, problem in damaged.items():
        target = move_away(folder)
        lines.append(f"checkpoint {folder} is damaged ({problem}): moved to {target}")
    return lines


def _find_damaged(path: pathlib.Path) -> tuple[dict[pathlib.Path, str], list[str]]:
    """Return what is wrong, by checkpoint, and lines about what is used all the same.

    Raises:
      OSError: The disk or the file system fails.
      UserError: No checkpoint is good.
    """
    steps = [p for p in path.iterdir() if p.name.isdecimal() and p.is_dir()]
    damaged, lines = {}, []
    for folder in sorted(steps, key=lambda p: -int(p.name)):
        if not checksums.is_sealed(folder):
            # The run was killed between the save and its seal, or an earlier version
            # wrote it. A folder that orbax has not finalized is not a checkpoint.
            if ocp.utils.is_checkpoint_finalized(folder) and any(folder.iterdir()):
                lines.append(
                    f"checkpoint {folder} has no checksums: used without verification"
                )
                with contextlib.suppress(OSError):  # seal it now
                    checksums.write(folder)
                break
            damaged[folder] = "is unfinished"
            continue
        problem = checksums.problem(folder)
        if problem is None:
            break
        damaged[folder] = problem
    else:
        if damaged:
            listing = "; ".join(
                f"{f.name}: {problem}" for f, problem in damaged.items()
            )
            raise errors.UserError(
                f"no checkpoint in {path} is intact ({listing}): restore one from a "
                "copy, or remove them all to start over"
            )
    return damaged, lines


def move_away(folder: pathlib.Path) -> pathlib.Path:
    """Move a checkpoint to WORKDIR/damaged_checkpoints and return its new path."""
    quarantine = folder.parent.with_name("damaged_checkpoints")
    quarantine.mkdir(exist_ok=True)
    target = quarantine / f"{folder.name}-{time.strftime('%Y%m%dT%H%M%S')}"
    return folder.rename(target)
