"""Runs in Weights & Biases, online or offline (WANDB_MODE)."""

import os
import uuid
from collections.abc import Mapping

from dinov2_jax import errors
from dinov2_jax.trackers import backends


class WandbRun:
    """An open run of Weights & Biases, see `backends.Tracker`.

    Args:
      run: The run.
    """

    def __init__(self, run: backends.RunInfo):
        import wandb  # optional

        self._wandb = wandb
        self.id = run.id or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=self.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", run.folder),
            config={**run.config, "images": dict(run.images)},
            allow_val_change=True,  # such as train.steps of a run that is prolonged
            # The measurements of the system are those of the training process.
            settings=wandb.Settings(console="off", silent=True, x_stats_pid=run.pid),
        )
        self.url = self._run.url or ""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step; steps never decrease."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: str) -> None:
        """Add an image file."""
        self._run.log({name: self._wandb.Image(path)}, step=step)

    def finish(self, code: int | None, reason: str) -> None:
        """End the run, see `backends.Tracker`."""
        self._run.summary["end"] = reason
        if code == errors.REQUEUE:
            self._run.mark_preempting()
        self._run.finish(exit_code=errors.CRASHED if code is None else code)
