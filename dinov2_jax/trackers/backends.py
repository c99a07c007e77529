"""The trackers that a run can write to besides TensorBoard and metrics.jsonl.

The name of a tracker is also that of its package and of the extra that installs it.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dinov2_jax import errors

NAMES = ("wandb", "mlflow", "trackio")
DEFAULT_PROJECT = "dinov2_jax"


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a tracker gets to know of a run when it opens it.

    Attributes:
      project: Name of the project, experiment or group of runs.
      name: Name of the run.
      id: The tracker's own id of the run that is resumed; "" for a new run.
      folder: Folder for files of the tracker.
      config: The config of the run, {"optim.base_lr": 0.004, ...}.
      images: Number, fingerprint and description of the images.
      pid: Process that trains.
    """

    project: str
    name: str
    id: str
    folder: str
    config: Mapping[str, Any]
    images: Mapping[str, Any]
    pid: int


class Tracker(Protocol):
    """An open run of a tracker. Every method may raise anything, and may take long.

    Attributes:
      id: The tracker's id of the run, by which it is resumed.
      url: Where the run can be seen; "" if unknown.
    """

    id: str
    url: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step; steps never decrease."""

    def picture(self, step: int, name: str, path: str) -> None:
        """Add an image file."""

    def finish(self, code: int | None, reason: str) -> None:
        """End the run.

        Args:
          code: Exit code of the run; None if it was killed.
          reason: Description of the end.
        """


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages of some trackers can be imported.

    Raises:
      UserError: A package is missing, or mlflow is not told where to write.
    """
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        extras = ",".join(missing)
        raise errors.UserError(
            f"log.trackers: {' and '.join(missing)} cannot be imported: install the "
            f"extra (pip install 'dinov2-jax[{extras}]') or remove the tracker"
        )
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise errors.UserError(
            "log.trackers: mlflow is not told where to write: set the environment "
            "variable MLFLOW_TRACKING_URI, such as http://127.0.0.1:5000"
        )


def _is_installed(name: str) -> bool:
    # A folder called wandb, as the package leaves them behind, is no package.
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
