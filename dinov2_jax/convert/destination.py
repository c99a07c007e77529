"""Destination of a conversion: what it may replace, and the replacement itself."""

import dataclasses
import os
import pathlib
import shutil

from dinov2_jax import errors
from dinov2_jax.weights import report

_COMPANIONS = {"onnx": (".json", ".data")}  # suffixes by target
_REPORT_ALONE = (".json",)


@dataclasses.dataclass(frozen=True)
class Destination:
    """A file or folder to write.

    Attributes:
      path: Absolute path.
      is_file: Whether the target writes a file.
      target: Name of the target.
    """

    path: pathlib.Path
    is_file: bool
    target: str

    def _goals(self) -> list[pathlib.Path]:
        """List all paths that are written; the file or folder itself is the last."""
        suffixes = _COMPANIONS.get(self.target, _REPORT_ALONE) if self.is_file else ()
        names = [f"{self.path.name}{suffix}" for suffix in (*suffixes, "")]
        return [self.path.with_name(name) for name in names]

    def check(self, source: str | None, *, overwrite: bool) -> None:
        """Check that the destination can be written and replaces nothing it must not.

        Args:
          source: Source of the conversion; None if it is in memory.
          overwrite: Whether earlier conversions may be replaced.

        Raises:
          UserError: It cannot; the message says which file or folder is in the way.
        """
        path = self.path
        if not path.name or not path.parent.is_dir():
            raise errors.UserError(f"there is no folder {path.parent}: create it first")
        existing = [p for p in self._goals()[::-1] if p.exists() or p.is_symlink()]
        if existing and not overwrite:
            raise errors.UserError(
                f"{existing[0]} exists: add --overwrite (overwrite=True) to replace it "
                "or choose another destination"
            )
        if self.is_file and any(goal.is_dir() for goal in existing):
            raise errors.UserError(f"{path} is a folder: pass a file name")
        if not self.is_file and existing and not path.is_dir():
            raise errors.UserError(f"{path} is a file: pass a folder name")
        is_conversion = report.path_of(path).is_file() and not path.is_symlink()
        if path.is_dir() and not is_conversion and any(path.iterdir()):
            raise errors.UserError(
                f"{path} contains files not written by a conversion: choose another "
                "folder"
            )
        for goal in existing:
            if source is not None and self._contains_source(goal, source):
                raise errors.UserError(
                    f"{goal} is or contains the source and would replace it: choose "
                    "another destination"
                )
        if not os.access(path.parent, os.W_OK):
            raise errors.UserError(
                f"cannot write to the folder {path.parent}: choose another"
            )

    def _contains_source(self, goal: pathlib.Path, source: str) -> bool:
        """Return whether replacing a goal would replace the source or a part of it.

        What a conversion wrote into a workdir is not a part of that workdir.
        """
        goal, origin = goal.resolve(), pathlib.Path(source).resolve()
        if goal == origin or goal in origin.parents:
            return True
        return origin in goal.parents and not report.path_of(self.path).is_file()

    def replace_from(self, folder: pathlib.Path) -> None:
        """Move everything written to `folder` here, replacing what was there.

        Old files are moved away first, and a file arrives after its companions, so that
        a crash leaves no file with the report or data of another. An exception leaves
        either the old or the new files: the old ones are put back. They are kept beside
        `folder`, because its owner removes it with all its content.

        Args:
          folder: Folder on the same file system that holds the goals by name.
        """
        goals = self._goals()
        new = [goal for goal in goals if (folder / goal.name).exists()]
        old = folder.with_name(f"{folder.name}.old")
        try:
            old.mkdir()
            for goal in reversed(goals):
                if goal.exists() or goal.is_symlink():
                    goal.replace(old / goal.name)
            for goal in new:
                (folder / goal.name).replace(goal)
        finally:
            if (folder / self.path.name).exists():  # interrupted
                for goal in goals:
                    if goal in new and not (folder / goal.name).exists():
                        goal.unlink()
                    if os.path.lexists(old / goal.name):
                        (old / goal.name).replace(goal)
            shutil.rmtree(old, ignore_errors=True)
