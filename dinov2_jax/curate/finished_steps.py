"""Which steps of a curation are finished, by the digests of what they read and wrote.

FOLDER/steps.json has, for each step, {"arguments", "inputs", "output"}: its flags, and
the SHA-256 of each file that it read and of the one that it wrote; "output" is null
while the step runs.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dinov2_jax import files


@dataclasses.dataclass(frozen=True)
class Step:
    """One step as it is to be done.

    Attributes:
      name: Name of the step.
      arguments: Its flags.
      inputs: Digests of the files that it reads, by name.
      output: The file that it writes.
      intermediate: Files that it writes on its way and reads again.
    """

    name: str
    arguments: Sequence[str]
    inputs: Mapping[str, str]
    output: pathlib.Path
    intermediate: Sequence[pathlib.Path] = ()


class FinishedSteps:
    """The record of a folder; nothing is written before a step begins.

    Args:
      folder: The folder.
    """

    def __init__(self, folder: pathlib.Path):
        self._path = folder / "steps.json"
        try:
            self._steps: dict[str, Any] = json.loads(self._path.read_bytes())
        except (OSError, ValueError):  # nothing was begun yet
            self._steps = {}

    def has(self, step: Step) -> bool:
        """Return whether a step is finished, and its output as the step left it.

        Args:
          step: The step.
        """
        saved = self._steps.get(step.name)
        return (
            self.has_begun(step)
            and saved["output"] is not None
            and step.output.is_file()
            and saved["output"] == files.sha256(step.output)
        )

    def has_begun(self, step: Step) -> bool:
        """Return whether a step was begun with the same flags and files.

        Args:
          step: The step.
        """
        saved = self._steps.get(step.name)
        return (
            saved is not None
            and saved["arguments"] == list(step.arguments)
            and saved["inputs"] == dict(step.inputs)
        )

    def wrote(self, name: str, path: pathlib.Path) -> bool:
        """Return whether a file is the output of a step that was begun here.

        Args:
          name: Name of the step.
          path: Path of the file, which exists.
        """
        saved = self._steps.get(name)
        return saved is not None and saved["output"] in (None, files.sha256(path))

    def forget(self) -> None:
        """Forget all steps, whose files are removed."""
        self._steps = {}

    def begin(self, step: Step) -> None:
        """Record that a step has begun.

        Args:
          step: The step.

        Raises:
          UserError: The record cannot be written.
        """
        self._write(step, None)

    def finish(self, step: Step) -> None:
        """Record that a step is finished.

        Args:
          step: The step, whose output exists.

        Raises:
          UserError: The record cannot be written.
        """
        self._write(step, files.sha256(step.output))

    def _write(self, step: Step, output: str | None) -> None:
        self._steps[step.name] = {
            "arguments": list(step.arguments),
            "inputs": dict(step.inputs),
            "output": output,
        }
        with files.open_new(self._path) as file:
            file.write(json.dumps(self._steps, indent=1).encode() + b"\n")
