"""What the folder of a run says about the weights that are read from it."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from dinov2_jax.config import resuming
from dinov2_jax.weights import native, report


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of this project, and which of its weights are meant.

    Attributes:
      workdir: Its folder.
      step: Finished steps of the weights.
      is_best: Whether they are those of the run's best evaluation.
      config: Its config, flat: {"optim.base_lr": 0.004, ...}.
      data: Content of data.json; {} if it is missing.
      teacher: Content of teacher.json, of a frozen teacher; {} if there is none.
      student: Name of the student whose weights are meant, if the run has several.
    """

    workdir: pathlib.Path
    step: int
    is_best: bool
    config: dict[str, Any]
    data: dict[str, Any]
    teacher: dict[str, Any]
    student: str = ""


def find(source: str | os.PathLike) -> Run | None:
    """Return the run that a source of weights belongs to; None if it is no run.

    Args:
      source: A workdir, checkpoints in it, or a student that a run exported into it;
        or any other source of weights.

    Raises:
      UserError: The run has no weights yet, or its config is damaged.
    """
    folder = pathlib.Path(os.path.expanduser(source))
    if not folder.is_dir() or not native.is_own(folder):
        return None
    step, is_best, student = None, False, ""
    if (folder / native.DESCRIPTION).is_file():  # an export
        workdir, student = folder.absolute().parent, folder.absolute().name
        if report.path_of(folder).is_file() or not (workdir / "config.json").is_file():
            return None
    else:
        weights, workdir, is_best = native.find(folder)
        step = int(weights.name)
    config = resuming.read_saved(workdir / "config.json")
    return Run(
        workdir,
        config["train.steps"] if step is None else step,
        is_best,
        config,
        read_json(workdir / "data.json"),
        read_json(workdir / "teacher.json"),
        student,
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
