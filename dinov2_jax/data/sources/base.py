"""The base class of all sources of images."""

import abc
import hashlib
import io
import json

import numpy as np
from PIL import Image

from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import extensions, messages

_DIGESTED = 1000  # evenly spaced images whose names are in a digest


class Source(abc.ABC):
    """Images by index, the same at every call.

    A source is cheap to pickle, because each loader worker gets a copy, and opens files
    itself in each process.
    """

    _shown_names = 3  # names of images in `describe`

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abc.abstractmethod
    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's file and header; raises `BadImage`."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image in messages."""

    def place_name(self, index: int) -> str:
        """Return what to call an image before it is read; by default its name."""
        return self.name(index)

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hex string that differs if the images differ."""

    @abc.abstractmethod
    def _where(self) -> str:
        """Return where the images are, such as "in 3 folders below /data"."""

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [length], or None if there are none."""
        return None

    @property
    def label_names(self) -> list[str]:
        """The names of the labels; empty if there are none."""
        return []

    def digest(self) -> bytes:
        """Return a hash of the number of images, where they are and some names.

        Unlike the fingerprint it is the same for copies with other modification times.
        It tells whether the processes of a run see the same images, at little cost.
        """
        some = np.unique(np.linspace(0, len(self) - 1, _DIGESTED).astype(int))
        names = [self.place_name(int(index)) for index in some]
        content = [int(self.pass_length), len(self), self._where(), names]
        return hashlib.sha256(json.dumps(content).encode()).digest()

    @property
    def pass_length(self) -> int:
        """Number of places of a pass; each shows one image."""
        return len(self)

    def resolve(self, pass_number: int, place: int) -> int:
        """Return the image that a place of a pass shows.

        Args:
          pass_number: Number of the pass, from 0.
          place: Place in the pass, in [0, `pass_length`).

        Returns:
          Index of the image, in [0, length).
        """
        del pass_number
        return place

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file, or of a PNG if it has no file.

        Raises:
          BadImage: It cannot be read.
        """
        pixels = self.open(index).pixels()
        stream = io.BytesIO()
        gray = pixels.shape[2] == 1
        Image.fromarray(pixels[..., 0] if gray else pixels).save(stream, "PNG")
        return stream.getvalue()

    def relative_path(self, index: int) -> bytes:
        """Return the name to store an image under, as the file system's bytes."""
        return self.name(index).encode("utf-8", "surrogateescape")

    def skipped(self) -> dict[str, int]:
        """Return how many files or folders were skipped, by reason."""
        return {}

    def skipped_names(self) -> list[tuple[str, str]]:
        """Return (name, reason) of the files and folders that were skipped."""
        return []

    def left_out(self) -> dict[str, int]:
        """Return how many files are not read by their extension."""
        return {}

    def warnings(self) -> list[str]:
        """Return a line for each likely mistake of the user."""
        return extensions.warnings(self.left_out(), len(self))

    def describe(self) -> str:
        """Return one line: how many images, where, what is missing, first names."""
        shown = range(min(self._shown_names, len(self)))
        return messages.described(
            len(self),
            self._where(),
            skipped=self.skipped(),
            left_out=extensions.counts(self.left_out()),
            first=[self.name(i) for i in shown],
        )
