"""Saving and restoring the whole `TrainState`."""

import contextlib
import errno
import os
import pathlib
import shutil
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dinov2_jax import errors
from dinov2_jax.checkpoint import checksums, disk_space, orbax_logging, quarantine

_MAX_FAILED = 3  # saves in a row
_CLEARING = 5.0  # seconds
_FULL = {os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)}


class Checkpointer:
    """Asynchronous, atomic checkpoints in WORKDIR/checkpoints, one folder per step.

    Each is sealed by a manifest of checksums. Damaged ones are moved to
    WORKDIR/damaged_checkpoints, and the newest good one is used.

    Args:
      workdir: The run's folder.
      keep_last: Number of newest checkpoints to keep.
      keep_every: Also keep each multiple of this step; 0: none.

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
            # Otherwise threads wait five minutes for a folder that cannot be made.
            async_options=ocp.options.AsyncOptions(
                create_directories_asynchronously=False
            ),
        )
        self._sealing: threading.Thread | None = None
        self._seal_error: Exception | None = None
        self._step: int | None = None  # of the last save
        self._failed_in_a_row = 0
        self._verified: set[int] = set()  # steps whose checksums were right
        self.failed = False
        self._manager = self._make_manager()

    def _make_manager(self) -> ocp.CheckpointManager:
        with orbax_logging.quiet():
            return ocp.CheckpointManager(
                self.path,
                item_handlers=ocp.StandardCheckpointHandler(),
                options=self._options,
            )

    def latest_step(self) -> int | None:
        """Return the step of the newest finished checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Return the steps of the finished checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, *, next_save: int | None = None) -> str:
        """Start saving; training may go on at once.

        If this save or the one before has failed, its files are removed and `step` is
        saved again, synchronously. `failed` detects a failure before the next save.

        Args:
          step: Number of finished steps.
          state: The `TrainState` after them.
          next_save: Step of the next save. None: this is the last one, which is
            waited for.

        Returns:
          A line for the user about a failed save, else "".

        Raises:
          UserError: The second attempt failed too and there is no next save or it is
            the third failure in a row; or a save of several processes failed, which
            cannot be tried again.
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
        needed = disk_space.bytes_of(state)
        full = reason in _FULL or disk_space.free(self.path) < needed
        where = f"to {self.path}"
        if full:
            where = disk_space.needed_and_free(self.path, needed)
        line = f"{line}: {where}; the last good checkpoint is {self._last_good()}"
        if (
            next_save is None
            or self._failed_in_a_row == _MAX_FAILED
            or jax.process_count() > 1
        ):
            raise errors.UserError(
                f"{line}. {'Free disk space' if full else 'Fix that'}, then run the "
                "same command to resume",
                exit_code=errors.TRY_AGAIN,
            )
        return (
            f"{line}; training continues, the next save is at step {next_save} "
            f"({self._failed_in_a_row} of at most {_MAX_FAILED} failed in a row)"
        )

    def _start(self, step: int, state: Any) -> str:
        """Start a save; return the reason if that fails, else ""."""
        self._step = step
        try:
            if step != self._manager.latest_step():
                self._manager.save(step, args=ocp.args.StandardSave(state))
        except Exception as error:  # orbax and tensorstore raise many kinds
            return orbax_logging.reason(error)
        if jax.process_index() == 0:
            self._sealing = threading.Thread(target=self._seal, args=(step,))
            self._sealing.start()
        return ""

    def _seal(self, step: int) -> None:
        """Wait for orbax to finish a save, then seal it."""
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
        """Wait for a running save; remove it if it fails.

        Raises:
          UserError: It failed, and other processes may not have noticed.
        """
        reason = self._finish()
        if reason and jax.process_count() > 1:
            raise errors.UserError(
                f"cannot save step {self._step} ({reason})", exit_code=errors.TRY_AGAIN
            )
        if reason:
            self._clear()

    def _finish(self) -> str:
        """Wait for a running save; return the reason if it failed, else ""."""
        saved = self._sealing is not None
        error = None
        try:
            with orbax_logging.quiet():  # orbax logs waits above a second
                self._manager.wait_until_finished()
        except Exception as raised:  # orbax and tensorstore raise many kinds
            error = raised
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        error = error or self._seal_error
        self._seal_error, self.failed = None, False
        if error is not None:
            return orbax_logging.reason(error)
        if saved:
            self._failed_in_a_row = 0
        return ""

    def _clear(self) -> None:
        """Remove a failed save, and renew the manager, which still counts it."""
        with contextlib.suppress(Exception), orbax_logging.quiet():
            self._manager.close()
        # Threads of the failed save may still be making folders.
        deadline = time.monotonic() + _CLEARING
        while left := list(self.path.glob("*.orbax-checkpoint-tmp*")):
            for folder in left:
                shutil.rmtree(folder, ignore_errors=True)
            if time.monotonic() > deadline:  # the next manager removes them
                break
            time.sleep(0.01)
        self._manager = self._make_manager()

    def _last_good(self) -> str:
        step = self.latest_step()
        return "none" if step is None else str(self.path / str(step))

    def set_aside_damaged(self) -> list[str]:
        """Move the damaged checkpoints that are newer than the newest good one.

        They go to WORKDIR/damaged_checkpoints.

        Returns:
          One line per finding.

        Raises:
          UserError: None is good, or one cannot be read for now; none is moved.
        """
        lines = []
        # Before process 0 seals what is used without verification.
        sealed = self._sealed_steps()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("sealed checkpoints are listed")
        if jax.process_index() == 0:
            lines = quarantine.set_aside(self.path)
        if jax.process_count() > 1:
            # No process reads checkpoints before this is done.
            multihost_utils.sync_global_devices("damaged checkpoints are moved")
        self._verified = sealed  # of which the newest is what `restore` reads
        self._manager.reload()
        return lines

    def _sealed_steps(self) -> set[int]:
        with contextlib.suppress(OSError):  # reading them says more
            return {
                int(folder.name)
                for folder in self.path.iterdir()
                if folder.name.isdecimal() and checksums.is_sealed(folder)
            }
        return set()

    def set_aside_after(self, step: int) -> None:
        """Move the checkpoints of later steps, which a rollback has discarded."""
        if jax.process_index() == 0:
            for later in self.steps():
                if later > step:
                    quarantine.move_away(self.path / str(later))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("later checkpoints are moved")
        self._manager.reload()

    def restore(self, abstract_state: Any) -> Any:
        """Restore the newest checkpoint with the shardings of `abstract_state`.

        Args:
          abstract_state: Tree of `jax.ShapeDtypeStruct` with shardings; the mesh may
            differ from the one that saved.

        Raises:
          UserError: The checkpoint cannot be read or belongs to a different model.
        """
        step = self.latest_step()
        try:
            with orbax_logging.quiet():
                # Orbax would fail half-way if a shape differs.
                differing = _differences(
                    self._manager.item_metadata(step), abstract_state
                )
                if not differing:
                    return self._manager.restore(
                        step, args=ocp.args.StandardRestore(abstract_state)
                    )
        except Exception as error:  # orbax and tensorstore raise many kinds
            # Orbax's unfinished coroutines would each print a traceback when they are
            # collected, some of them at exit.
            sys.unraisablehook = lambda unraisable: None
            if step in self._verified or orbax_logging.is_of_machine(error):
                raise orbax_logging.not_damaged(self.path / str(step), error) from error
            reason = " ".join(str(error).split())[:200]
            raise errors.UserError(
                f"cannot read the checkpoint {self.path / str(step)} ({reason}): "
                "remove that folder to resume from the one before it, or choose "
                "another --workdir"
            ) from error
        raise errors.UserError(
            f"the checkpoint {self.path / str(step)} belongs to a different model "
            f"({'; '.join(differing[:3])}; {len(differing)} arrays differ): undo the "
            "change of the config or choose another --workdir"
        )

    def close(self) -> None:
        """Wait for a running save, and close the manager.

        Raises:
          UserError: The save failed.
        """
        reason = self._finish()
        with contextlib.suppress(Exception):  # it raises the same error again
            self._manager.close()
        if reason:
            raise errors.UserError(
                f"cannot save step {self._step} ({reason}); the last good checkpoint "
                f"is {self._last_good()}",
                exit_code=errors.TRY_AGAIN,
            )


def _differences(saved: Any, expected: Any) -> list[str]:
    """List the arrays whose shape or dtype differs between two trees.

    Floats of another precision do not differ, and are cast: the queue and the Gram
    teacher have that of matmuls, which model.dtype="auto" takes from the device.
    """

    def arrays(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    saved, expected = arrays(saved), arrays(expected)
    return [
        f"{name}: {_text(saved.get(name))} -> {_text(expected.get(name))}"
        for name in sorted(saved.keys() | expected.keys())
        if _kind(saved.get(name)) != _kind(expected.get(name))
    ]


def _kind(leaf: Any) -> tuple[Any, tuple[int, ...]] | None:
    if leaf is None:
        return None
    is_float = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    return "float" if is_float else leaf.dtype, tuple(leaf.shape)


def _text(leaf: Any) -> str:
    if leaf is None:
        return "none"
    return f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
    """Return whether the run has a finished checkpoint; uses no device."""
    path = pathlib.Path(workdir) / "checkpoints"
    return path.is_dir() and any(
        p.name.isdigit() and p.is_dir() for p in path.iterdir()
    )
