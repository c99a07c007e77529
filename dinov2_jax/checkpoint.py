"""Saving and restoring the whole `TrainState`. The only file that imports orbax."""

import contextlib
import logging
import os
import pathlib
import re
import shutil
import sys
import threading
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dinov2_jax import checksums, disk_space, errors

_MAX_FAILED = 3  # saves in a row


class Checkpointer:
    """Asynchronous, atomic checkpoints below WORKDIR/checkpoints, one folder a step.

    Each is sealed by a manifest of checksums. A damaged one is moved to
    WORKDIR/damaged_checkpoints, and the newest good one serves.

    Args:
      workdir: The run's folder.
      keep_last: Newest checkpoints to keep.
      keep_every: Keep also each multiple of this step; 0 for none.

    Attributes:
      path: The folder of the checkpoints.
      failed: Whether the save under way is known to have failed.
    """

    def __init__(
        self, workdir: str | pathlib.Path, *, keep_last: int = 3, keep_every: int = 0
    ):
        self.path = pathlib.Path(workdir).absolute() / "checkpoints"
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,
            # Else threads would wait five minutes for a folder that cannot be made.
            async_options=ocp.options.AsyncOptions(
                create_directories_asynchronously=False
            ),
        )
        self._sealing: threading.Thread | None = None
        self._seal_error: Exception | None = None
        self._step: int | None = None  # of the last save
        self._failed_in_a_row = 0
        self.failed = False
        logging.getLogger("absl").setLevel(logging.WARNING)
        _hush_threads()
        self._manager = self._make_manager()

    def _make_manager(self) -> ocp.CheckpointManager:
        with _quiet():
            return ocp.CheckpointManager(
                self.path,
                item_handlers=ocp.StandardCheckpointHandler(),
                options=self._options,
            )

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint, None without one."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, *, next_save: int | None = None) -> str:
        """Starts saving; training may go on at once.

        Where this save or the one before fails, what it left is removed, and `step` is
        saved once more at once and waited for. Whoever sees `failed` need not wait for
        the next save to find out.

        Args:
          step: Finished steps.
          state: Of them.
          next_save: Step of the next save. None: there is none, and this one is
            waited for.

        Returns:
          A line for the user about a save that failed, else "".

        Raises:
          UserError: It failed again, and there is no next save, it is the third in a
            row, or there are other processes, which cannot try again.
        """
        failed, reason = self._step, self._finish()
        if not reason:
            failed, reason = step, self._start(step, state)
        if not reason and next_save is None:
            reason = self._finish()
        if not reason:
            return ""
        line = f"cannot save step {failed} ({reason})"
        if jax.process_count() == 1:
            self._clear()
            if not (self._start(step, state) or self._finish()):
                return f"{line}: saved step {step} at the second attempt"
            self._clear()
        self._failed_in_a_row += 1
        room = disk_space.needed_and_free(self.path, disk_space.bytes_of(state))
        line = f"{line}: {room}; the last good checkpoint is {self._last_good()}"
        if (
            next_save is None
            or self._failed_in_a_row == _MAX_FAILED
            or jax.process_count() > 1
        ):
            raise errors.UserError(
                f"{line}. Make room; the same command goes on from there",
                exit_code=errors.CRASHED,
            )
        return (
            f"{line}; training goes on, the next save is at step {next_save} "
            f"({self._failed_in_a_row} of at most {_MAX_FAILED} failed in a row)"
        )

    def _start(self, step: int, state: Any) -> str:
        """Begins a save; returns the reason where that fails."""
        self._step = step
        try:
            if step != self._manager.latest_step():
                self._manager.save(step, args=ocp.args.StandardSave(state))
        except Exception as error:  # orbax and tensorstore raise many kinds
            return _reason(error)
        if jax.process_index() == 0:
            self._sealing = threading.Thread(target=self._seal, args=(step,))
            self._sealing.start()
        return ""

    def _seal(self, step: int) -> None:
        """Waits for a save to be finished by orbax, and seals it."""
        while self._manager.is_saving_in_progress():
            time.sleep(0.02)
        folder = self.path / str(step)
        try:
            if not checksums.is_sealed(folder):
                checksums.write(folder)
        except OSError as error:  # no folder: the save failed, which `_finish` finds
            self._seal_error = error
            self.failed = True

    def finish(self) -> None:
        """Waits for a save under way; one that failed is removed."""
        if self._finish():
            self._clear()

    def _finish(self) -> str:
        """Waits for the save under way; returns the reason if it failed."""
        saved = self._sealing is not None
        error = None
        try:
            with _quiet():  # it would say how long, above a second
                self._manager.wait_until_finished()
        except Exception as raised:  # orbax and tensorstore raise many kinds
            error = raised
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        error = error or self._seal_error
        self._seal_error, self.failed = None, False
        if error is not None:
            return _reason(error)
        if saved:
            self._failed_in_a_row = 0
        return ""

    def _clear(self) -> None:
        """Removes what a failed save left; a new manager, for the old one counts it."""
        with contextlib.suppress(Exception), _quiet():
            self._manager.close()
        for folder in self.path.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(folder, ignore_errors=True)
        self._manager = self._make_manager()

    def _last_good(self) -> str:
        step = self.latest_step()
        return "none" if step is None else str(self.path / str(step))

    def set_aside_damaged(self) -> list[str]:
        """Moves damaged checkpoints away, from the newest on to the first good one.

        Returns:
          What was found, a line each.

        Raises:
          UserError: None is good; all stay where they are.
        """
        lines = []
        if jax.process_index() == 0:
            lines = _set_aside_damaged(self.path)
        if jax.process_count() > 1:
            # Nobody looks before it is done.
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()
        return lines

    def set_aside_after(self, step: int) -> None:
        """Moves the checkpoints of later steps away, whose run is given up."""
        if jax.process_index() == 0:
            for later in self.steps():
                if later > step:
                    _move_away(self.path / str(later))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("later checkpoints are set aside")
        self._manager.reload()

    def restore(self, abstract_state: Any) -> Any:
        """The newest checkpoint, laid out as `abstract_state` says.

        Args:
          abstract_state: Tree of `jax.ShapeDtypeStruct` with shardings; the mesh may
            differ from the one that saved.

        Raises:
          UserError: The checkpoint cannot be read or is of another model.
        """
        step = self.latest_step()
        try:
            with _quiet():
                # Orbax would cast and, where a shape differs, fail half-way.
                differing = _differences(
                    self._manager.item_metadata(step), abstract_state
                )
                if not differing:
                    return self._manager.restore(
                        step, args=ocp.args.StandardRestore(abstract_state)
                    )
        except Exception as error:  # orbax and tensorstore raise many kinds
            # Orbax's unfinished coroutines would each print a trace when they are
            # collected, some only while the process ends.
            sys.unraisablehook = lambda unraisable: None
            reason = " ".join(str(error).split())[:200]
            raise errors.UserError(
                f"cannot read the checkpoint {self.path / str(step)} ({reason}): "
                "remove that folder to resume from the one before it, or choose "
                "another --workdir"
            ) from error
        raise errors.UserError(
            f"the checkpoint {self.path / str(step)} is of another model "
            f"({'; '.join(differing[:3])}; {len(differing)} arrays differ): undo what "
            "changed in the config or choose another --workdir"
        )

    def close(self) -> None:
        """Waits for a save under way.

        Raises:
          UserError: It failed.
        """
        reason = self._finish()
        with contextlib.suppress(Exception):  # which it raises a second time
            self._manager.close()
        if reason:
            raise errors.UserError(
                f"cannot save step {self._step} ({reason}); the last good checkpoint "
                f"is {self._last_good()}",
                exit_code=errors.CRASHED,
            )


def _reason(error: Exception) -> str:
    """Why a save failed, in the words of the system where they are known."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore says it
    if code:
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200]


def _hush_threads() -> None:
    """Keeps from the console what orbax's threads say of a failure that is raised."""
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _unraisable


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _set_aside_damaged(path: pathlib.Path) -> list[str]:
    steps = [p for p in path.iterdir() if p.name.isdecimal() and p.is_dir()]
    damaged, lines = {}, []
    for folder in sorted(steps, key=lambda p: -int(p.name)):
        if not checksums.is_sealed(folder):
            # Killed within the moment between the save and its seal, or written by an
            # earlier version; what orbax calls unfinished is no checkpoint.
            if ocp.utils.is_checkpoint_finalized(folder) and any(folder.iterdir()):
                lines.append(f"checkpoint {folder} has no checksums: it is trusted")
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
        target = _move_away(folder)
        lines.append(f"checkpoint {folder} is damaged ({why}): moved to {target}")
    return lines


def _move_away(folder: pathlib.Path) -> pathlib.Path:
    away = folder.parent.with_name("damaged_checkpoints")
    away.mkdir(exist_ok=True)
    target = away / f"{folder.name}-{time.strftime('%Y%m%dT%H%M%S')}"
    return folder.rename(target)


def read_weights(folder: pathlib.Path, branch: str | None = None) -> Any:
    """Weights out of a folder that orbax wrote, the rest left on disk.

    Args:
      folder: Of `write_weights`, or of one step of a `Checkpointer`.
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
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
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


def write_weights(folder: pathlib.Path, weights: Any) -> None:
    """Writes a tree of arrays, whole or not at all; replaces what was there.

    Raises:
      UserError: It cannot be written.
    """
    try:
        with _quiet(), ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), weights, force=True)
    except Exception as error:  # orbax and tensorstore raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(f"cannot write {folder} ({reason})") from error


def _differences(saved: Any, wanted: Any) -> list[str]:
    """Names the arrays whose shape or dtype two trees do not share."""

    def arrays(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): (
                f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    before, now = arrays(saved), arrays(wanted)
    return [
        f"{name}: {before.get(name, 'none')} -> {now.get(name, 'none')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


@contextlib.contextmanager
def _quiet():
    """Without the lines that orbax logs about a damaged checkpoint before it raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Whether a finished checkpoint lies in the run's folder; touches no device."""
    path = pathlib.Path(workdir) / "checkpoints"
    return path.is_dir() and any(
        p.name.isdigit() and p.is_dir() for p in path.iterdir()
    )
