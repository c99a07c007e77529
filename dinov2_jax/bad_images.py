"""The account of unreadable images that a run met."""

import logging
import pathlib
from typing import Any

import numpy as np

from dinov2_jax import errors, record_file


class BadImages:
    """Unreadable images: each named once in WORKDIR/bad_images.txt, and counted."""

    def __init__(self, workdir: pathlib.Path, source: Any, max_share: float):
        self._path = workdir / "bad_images.txt"
        self._total, self._max_share = len(source), max_share
        self._seen: set[str] = set()
        self._log: record_file.RecordFile | None = None
        if self._path.exists():
            lines = self._path.read_text("utf-8", "replace").split("\n")
            self._seen = {line.split("\t")[0] for line in lines if line}

    @property
    def count(self) -> int:
        """Distinct unreadable images met so far."""
        return len(self._seen)

    def add(self, bad: np.ndarray) -> None:
        """Logs the new ones among a batch's `bad_images`.

        Raises:
          UserError: More than the allowed share of the source is unreadable.
        """
        for entry in bad:
            name = str(entry["name"])
            name = "".join(c if c.isprintable() else _escaped(c) for c in name)
            if name in self._seen:
                continue
            self._seen.add(name)
            if self._log is None:
                self._log = record_file.RecordFile(self._path)
            self._log.append(f"{name}\t{entry['reason']}\n".encode())
            if self.count == 1:
                logging.warning("unreadable image %s: %s", name, entry["reason"])
        if self.count > self._max_share * self._total:
            raise errors.UserError(
                f"{self.summary()}, more than data.max_bad_share = {self._max_share}: "
                "repair or remove them, or raise --config.data.max_bad_share"
            )

    def summary(self) -> str:
        """One line with the count and where they are named."""
        return (
            f"{self.count} of {self._total} images are unreadable and were replaced; "
            f"they are named in {self._path}"
        )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
