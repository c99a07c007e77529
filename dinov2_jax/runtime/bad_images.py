"""The list of unreadable images found by the processes of a run.

Each process writes its own file, since not every file system lets several processes
append to one: WORKDIR/bad_images.txt for the first, bad_images-3.txt for process 3. An
image counts once, however many processes name it. After a restart, those named before
count against the allowed share only when this process meets them again, since they may
have been repaired.
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

_LOOK_EVERY = 10.0  # minimum seconds between reads of other processes' files
_FIRST_COUNT = 4  # bad images, after which their number is logged at each doubling


def paths(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Return the files that name a run's unreadable images, process 0's first."""
    first = workdir / "bad_images.txt"
    return [first] * first.exists() + sorted(workdir.glob("bad_images-*.txt"))


def names(workdir: pathlib.Path) -> set[str]:
    """Return the names of the unreadable images found by any process."""
    return set().union(*map(_names_in, paths(workdir)))


def forget(workdir: pathlib.Path) -> None:
    """Remove the files, because a run starts at step 0, perhaps on other images."""
    for path in paths(workdir):
        path.unlink(missing_ok=True)


def _names_in(path: pathlib.Path, start: int = 0) -> set[str]:
    """Return the names in a file, from a byte on."""
    lines = path.read_bytes()[start:].decode("utf-8", "replace").split("\n")
    return {line.split("\t")[0] for line in lines[:-1]}  # the last may be cut


class BadImages:
    """The unreadable images that one process logs, counted over all processes.

    Args:
      workdir: The run's folder.
      source: The images; only their number is used.
      max_share: Share of the images that may be unreadable, in [0, 1].
      process: Index of the process that logs; None means this one.
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
        self._seen: set[str] = set()  # named in any file
        self._now: set[str] = set()  # of those, met or named since the start
        self._sizes: dict[pathlib.Path, int] = {}
        self._starts: dict[pathlib.Path, int] = {}
        self._log: append_file.RecordFile | None = None
        self._update()
        self._starts = dict(self._sizes)
        self._now.clear()
        self._next_count = max(_FIRST_COUNT, 2 * len(self._seen))
        self._looked = -math.inf  # the first new image reads the files again

    @property
    def count(self) -> int:
        """Distinct unreadable images found by all processes so far."""
        self._update()
        return len(self._seen)

    def add(self, bad: Iterable[Any]) -> None:
        """Log the new ones among a batch's `bad_images`.

        The first one is named, and the count is logged whenever it doubles.

        Raises:
          UserError: More than the allowed share of the source is unreadable.
        """
        for entry in bad:
            name = str(entry["name"])
            name = "".join(c if c.isprintable() else _escaped(c) for c in name)
            if name in self._now:
                continue
            if time.monotonic() - self._looked >= _LOOK_EVERY:
                self._update()
                if name in self._now:
                    continue
            self._now.add(name)
            if name in self._seen:  # and so in a file
                continue
            self._seen.add(name)
            if self._log is None:
                self._log = append_file.RecordFile(self._path)
            self._log.write(f"{name}\t{entry['reason']}\n".encode())
            if len(self._seen) == 1:
                logging.warning(
                    "%sunreadable image %s: %s", self._label, name, entry["reason"]
                )
        if len(self._now) > self._max_share * self._total:
            raise errors.UserError(
                f"{self._summary(self._now)}, more than data.max_bad_share = "
                f"{self._max_share}: repair or remove them, or raise "
                "--config.data.max_bad_share"
            )
        if len(self._seen) >= self._next_count:
            self._next_count = 2 * len(self._seen)
            logging.warning("%sso far %s", self._label, self.summary())

    def _update(self) -> None:
        """Read the files of all processes that have changed since the last time."""
        self._looked = time.monotonic()
        for path in paths(self._workdir):
            with contextlib.suppress(OSError):  # try again the next time
                size = path.stat().st_size
                if size != self._sizes.get(path):
                    self._seen |= _names_in(path)
                    self._now |= _names_in(path, self._starts.get(path, 0))
                    self._sizes[path] = size

    def summary(self) -> str:
        """Return one line with the count and the files that name the images."""
        return self._summary(self._seen)

    def _summary(self, images: set[str]) -> str:
        where = self._workdir / "bad_images.txt"
        others = [path for path in paths(self._workdir) if path != where]
        if others:
            where = self._workdir / "bad_images*.txt"
        return (
            f"{len(images)} of {self._total} images are unreadable and were "
            f"replaced; they are named in {where}"
        )


def _this_process() -> int:
    if not distributed.joined():
        return 0
    import jax

    return jax.process_index()


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
