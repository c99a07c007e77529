"""The account of unreadable images that the processes of a run met.

Each process has a file of its own, as several cannot append to one file on every file
system: WORKDIR/bad_images.txt of the first, bad_images-3.txt of process 3. An image
counts once, whoever names it.
"""

import contextlib
import logging
import math
import pathlib
import time
from collections.abc import Iterable
from typing import Any

from dinov2_jax import errors
from dinov2_jax.runtime import append_file, distributed

_LOOK_EVERY = 10.0  # seconds, at the least, between looks at the others' files


def paths(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The files that name a run's unreadable images, that of process 0 first."""
    first = workdir / "bad_images.txt"
    return [first] * first.exists() + sorted(workdir.glob("bad_images-*.txt"))


def names(workdir: pathlib.Path) -> set[str]:
    """The unreadable images that any process of a run has met, each once."""
    return set().union(*map(_names_in, paths(workdir)))


def _names_in(path: pathlib.Path) -> set[str]:
    lines = path.read_text("utf-8", "replace").split("\n")
    return {line.split("\t")[0] for line in lines[:-1]}  # the last may not be whole


class BadImages:
    """Unreadable images: each named once by a process, and counted over all.

    Args:
      workdir: Of the run.
      source: Of the images.
      max_share: Of the source that may be unreadable.
      process: Of which this is the account; None: this one.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        source: Any,
        max_share: float,
        process: int | None = None,
    ):
        process = _this_process() if process is None else process
        name = f"bad_images-{process}.txt" if process else "bad_images.txt"
        self._workdir, self._path = workdir, workdir / name
        self._label = f"process {process}: " if process else ""
        self._total, self._max_share = len(source), max_share
        self._seen: set[str] = set()
        self._sizes: dict[pathlib.Path, int] = {}
        self._log: append_file.RecordFile | None = None
        self._look()
        self._looked = -math.inf  # so that the first new one makes it look again

    @property
    def count(self) -> int:
        """Distinct unreadable images that all processes met so far."""
        self._look()
        return len(self._seen)

    def add(self, bad: Iterable[Any]) -> None:
        """Logs the new ones among a batch's `bad_images`.

        Raises:
          UserError: More than the allowed share of the source is unreadable.
        """
        for entry in bad:
            name = str(entry["name"])
            name = "".join(c if c.isprintable() else _escaped(c) for c in name)
            if name in self._seen:
                continue
            if time.monotonic() - self._looked >= _LOOK_EVERY:
                self._look()
                if name in self._seen:
                    continue
            self._seen.add(name)
            if self._log is None:
                self._log = append_file.RecordFile(self._path)
            self._log.write(f"{name}\t{entry['reason']}\n".encode())
            if len(self._seen) == 1:
                logging.warning(
                    "%sunreadable image %s: %s", self._label, name, entry["reason"]
                )
        if len(self._seen) > self._max_share * self._total:
            raise errors.UserError(
                f"{self.summary()}, more than data.max_bad_share = {self._max_share}: "
                "repair or remove them, or raise --config.data.max_bad_share"
            )

    def _look(self) -> None:
        """Reads what has come to the files of all processes."""
        self._looked = time.monotonic()
        for path in paths(self._workdir):
            with contextlib.suppress(OSError):  # of the others, the next look will do
                size = path.stat().st_size
                if size != self._sizes.get(path):
                    self._seen |= _names_in(path)
                    self._sizes[path] = size

    def summary(self) -> str:
        """One line with the count and where they are named."""
        where = self._workdir / "bad_images.txt"
        others = [path for path in paths(self._workdir) if path != where]
        if others:
            where = self._workdir / "bad_images*.txt"
        return (
            f"{len(self._seen)} of {self._total} images are unreadable and were "
            f"replaced; they are named in {where}"
        )


def _this_process() -> int:
    if not distributed.joined():
        return 0
    import jax

    return jax.process_index()


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
