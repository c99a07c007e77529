"""Shards of a source: the work of one of several jobs that embed the same images."""

import dataclasses
import pathlib
import re

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, messages


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of several equal parts, in the order of the images.

    Attributes:
      number: Number of the part, in [1, count].
      count: Number of parts.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def bounds(self, length: int) -> tuple[int, int]:
        """Return the first image of the part and the one after its last.

        Args:
          length: Number of images of all parts.
        """
        return (
            (self.number - 1) * length // self.count,
            self.number * length // self.count,
        )

    def file_name(self, out: pathlib.Path) -> pathlib.Path:
        """Return the name of the part's file, such as f-00003-of-00008.parquet."""
        part = f"{self.number:05}-of-{self.count:05}"
        return out.with_name(f"{out.stem}-{part}{out.suffix}")


def parse(text: str) -> Shard:
    """Return the shard that a flag names.

    Args:
      text: Number and count, such as 3/8.

    Raises:
      UserError: It is not a number from 1 to a count.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return Shard(int(match[1]), int(match[2]))
    raise errors.UserError(
        f"--shard={text} is not a number from 1 to the count of shards: write "
        "--shard=1/8 to --shard=8/8 for eight jobs (--array=1-8)"
    )


class ShardSource(base.Source):
    """The images of one shard of a source.

    Args:
      source: All images.
      shard: Which part of them.

    Attributes:
      source: All images.
      start: Index in `source` of the first image of the part.

    Raises:
      UserError: The part is empty.
    """

    def __init__(self, source: base.Source, shard: Shard):
        self.source, self._shard = source, shard
        self.start, self._stop = shard.bounds(len(source))
        if self.start == self._stop:
            raise errors.UserError(
                f"--shard={shard} has no images, as there are only {len(source)}: "
                f"divide them into at most {len(source)} shards"
            )

    def __len__(self) -> int:
        return self._stop - self.start

    def _global(self, index: int) -> int:
        """Return the index in `source` of an image of the part."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.start + index

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's file and header; raises `BadImage`."""
        return self.source.open(self._global(index))

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file; raises `BadImage`."""
        return self.source.content(self._global(index))

    def name(self, index: int) -> str:
        """Return the name of an image in messages."""
        return self.source.name(self._global(index))

    def relative_path(self, index: int) -> bytes:
        """Return the name to store an image under, as the file system's bytes."""
        return self.source.relative_path(self._global(index))

    def skipped_names(self) -> list[tuple[str, str]]:
        """Return (name, reason) of what was skipped in the whole source."""
        return self.source.skipped_names()

    def left_out(self) -> dict[str, int]:
        """Return how many files of the whole source are not read by their extension."""
        return self.source.left_out()

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the whole source."""
        return f"{self.source.fingerprint} {self._shard}"

    def _where(self) -> str:
        return f"of shard {self._shard}"

    def describe(self) -> str:
        """Return one line: the images of the part, then the whole source."""
        found = messages.counted(len(self), "image")
        return f"{found} of shard {self._shard} of {self.source.describe()}"
