"""Images of several sources, each once, under names that do not depend on weights."""

import os

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, folder, messages, mixture


class JoinedSource(base.Source):
    """Every image of several sources once, one source after the other.

    A file that several sources have is taken from the first of them. If all images are
    files, their names are paths below the folder that contains all sources.

    Args:
      sources: The sources; mixtures among them are taken apart.
      names: Name of each source in messages.

    Attributes:
      root: Folder that the names are relative to; None if some images are no files.

    Raises:
      UserError: A source that has no files is named twice.
    """

    def __init__(self, sources: list[base.Source], names: list[str]):
        sources, names = _parts(sources, names)
        weights = [source.pass_length for source in sources]
        self._all = mixture.MixtureSource(sources, weights, names)
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        roots, others = [], []
        for source, name in zip(sources, names):
            if isinstance(source, folder.FilesSource):
                roots.append(source.path)
            elif name in others:
                raise errors.UserError(f"DATA has {name} twice: name it once")
            else:
                others.append(name)
        self.root = None if others else os.path.commonpath(roots)
        self._kept = self._first_of_each_file()

    def _first_of_each_file(self) -> np.ndarray:
        """Return the images of `_all` that no earlier one has the file of, int [n]."""
        kept, seen = [], set()
        for start, source in zip(self._starts, self._all.sources):
            for local in range(len(source)):
                path = _path(source, local)
                if path is None or path not in seen:
                    kept.append(start + local)
                seen.add(path)
        return np.array(kept, np.int64)

    def _of_all(self, index: int) -> int:
        """Return the index in `_all` of an image."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return int(self._kept[index])

    def __len__(self) -> int:
        return len(self._kept)

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's file and header; raises `BadImage`."""
        return self._all.open(self._of_all(index))

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file; raises `BadImage`."""
        return self._all.content(self._of_all(index))

    def name(self, index: int) -> str:
        """Return the source's name and its name of the image."""
        return self._all.name(self._of_all(index))

    def relative_path(self, index: int) -> bytes:
        """Return the path below `root`; without one, the source's name and its own."""
        if self.root is None:
            return self._all.relative_path(self._of_all(index))
        found = self._of_all(index)
        which = int(np.searchsorted(self._starts, found, side="right")) - 1
        path = _path(self._all.sources[which], found - int(self._starts[which]))
        return path.removeprefix(os.fsencode(self.root).rstrip(b"/") + b"/")

    def skipped(self) -> dict[str, int]:
        """Return how many files or folders of all sources were skipped, by reason."""
        return self._all.skipped()

    def skipped_names(self) -> list[tuple[str, str]]:
        """Return (source and name, reason) of what was skipped."""
        return self._all.skipped_names()

    def left_out(self) -> dict[str, int]:
        """Return how many files of all sources are not read by their extension."""
        return self._all.left_out()

    def warnings(self) -> list[str]:
        """Return the lines of all sources, each once."""
        return self._all.warnings()

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the sources."""
        return self._all.fingerprint

    def _where(self) -> str:
        return f"in {len(self._all.sources)} sources, each once"

    def describe(self) -> str:
        """Return one line: the images, and how many files several sources have."""
        shown = f"{messages.counted(len(self), 'image')} {self._where()}"
        again = len(self._all) - len(self)
        if not again:
            return shown
        return f"{shown}; {messages.counted(again, 'file')} of several sources"


def _path(source: base.Source, index: int) -> bytes | None:
    """Return the absolute path of an image; None if it is no file of its own."""
    if not isinstance(source, folder.FilesSource):
        return None
    path = os.path.join(os.fsencode(source.path), source.relative_path(index))
    return os.path.normpath(path)


def _parts(
    sources: list[base.Source], names: list[str]
) -> tuple[list[base.Source], list[str]]:
    """Return the sources that are no mixtures, and their names."""
    parts: list[base.Source] = []
    part_names: list[str] = []
    for source, name in zip(sources, names):
        found = [source], [name]
        if isinstance(source, mixture.MixtureSource):
            found = _parts(source.sources, source.source_names)
        parts += found[0]
        part_names += found[1]
    return parts, part_names
