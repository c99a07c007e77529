"""Runs in Trackio, local (TRACKIO_DIR) or on a Space (TRACKIO_SPACE_ID)."""

import uuid
from collections.abc import Mapping

from dinov2_jax.trackers import backends


class TrackioRun:
    """An open run of Trackio, see `backends.Tracker`.

    Trackio resumes runs by their names, so the name gets a part that is its own. It has
    no field for how a run ended: the exit code is a metric.

    Args:
      run: The run.
    """

    def __init__(self, run: backends.RunInfo):
        import trackio  # optional

        self._trackio = trackio
        self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self.url = ""
        self._step = 0
        self._run = trackio.init(
            project=run.project,
            name=self.id,
            resume="allow" if run.id else "never",
            config={**run.config, "images": dict(run.images)},
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step; steps never decrease."""
        self._step = step
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, path: str) -> None:
        """Add an image file."""
        self._run.log({name: self._trackio.Image(path)}, step=step)

    def finish(self, code: int | None, reason: str) -> None:
        """End the run, see `backends.Tracker`."""
        if code is not None:
            self._run.log({"exit_code": code}, step=self._step)
        self._run.finish()
