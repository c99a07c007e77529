"""The folder of a run: made before anything is compiled, and told what runs in it."""

import json
import pathlib
import tempfile
from typing import Any

from dinov2_jax import errors


def make_workdir(workdir: pathlib.Path) -> None:
    """Creates the run's folder.

    Raises:
      UserError: It cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise errors.UserError(
            f"cannot write to the folder {workdir} ({error.strerror}): choose another "
            "--workdir"
        ) from error


def write_config(config: Any, workdir: pathlib.Path) -> None:
    """Writes WORKDIR/config.json, whole or not at all."""
    fields = json.loads(config.to_json_best_effort())
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(fields, indent=2) + "\n")
    temporary.replace(workdir / "config.json")
