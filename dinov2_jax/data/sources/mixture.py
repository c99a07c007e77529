"""Several sources in one, each with a share of every pass.

A pass has T places. The share of source i is its weight over the sum of the weights,
rounded to whole places, and T is the smallest number that shows every image of every
source at least once. A source with more places than images shows all of them equally
often, and some once more. Those differ from pass to pass, in a fixed cyclic order, so
that over many passes all images of a source are shown equally often. An image that
its source repeats (column `repeat` of a manifest) counts as that many images.
"""

import collections
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, extensions, messages

_MOST_TIMES = 10_000  # most times that an image is shown in a pass


class MixtureSource(base.Source):
    """Images of several sources, numbered one source after the other.

    It has no labels, because those of different sources do not mean the same.

    Args:
      sources: The sources; none is empty.
      weights: Weight of each source, above 0.
      names: Name of each source in messages.

    Raises:
      UserError: A weight is not above 0, or they differ so much that images of one
        source would be shown over 10,000 times before all of another are shown once.

    Attributes:
      sources: The sources.
      source_names: Their names in messages.
      places: Number of places of each source.
    """

    def __init__(
        self,
        sources: Sequence[base.Source],
        weights: Sequence[float],
        names: list[str],
    ):
        if not sources or len(sources) != len(weights):
            raise ValueError("a mixture has sources, and a weight for each")
        for name, weight in zip(names, weights):
            if not (weight > 0 and math.isfinite(weight)):
                raise errors.UserError(
                    f"data.mixture: the weight of {name} is {weight}: give a number "
                    "above 0, or leave the source out"
                )
        self.sources, self.source_names = list(sources), names
        lengths = [source.pass_length for source in sources]
        _check_balance(lengths, weights, names)
        self._starts = np.cumsum([0, *(len(source) for source in sources)]).tolist()
        self.places = _places(lengths, weights)
        self._place_starts = np.cumsum([0, *self.places]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def pass_length(self) -> int:
        """Number of places of a pass, T."""
        return self._place_starts[-1]

    def resolve(self, pass_number: int, place: int) -> int:
        """Return the image that a place of a pass shows."""
        which = int(np.searchsorted(self._place_starts, place, side="right")) - 1
        source = self.sources[which]
        length = source.pass_length
        local = int(place) - self._place_starts[which]
        whole, extra = divmod(self.places[which], length)
        if local >= whole * length:
            # The extra images of a pass continue after those of the pass before.
            number = pass_number * extra + local - whole * length
            local = number % length * _stride(length)
        return self._starts[which] + source.resolve(pass_number, local % length)

    def _find(self, index: int) -> tuple[int, int]:
        """Return (source, image in it) of an index."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return which, index - self._starts[which]

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Read an image's file and header; raises `BadImage`."""
        which, local = self._find(index)
        try:
            return self.sources[which].open(local)
        except image_decoder.BadImage as error:
            name = f"{self.source_names[which]}: {error.name}"
            raise image_decoder.BadImage(name, error.reason) from error

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file; raises `BadImage`."""
        which, local = self._find(index)
        return self.sources[which].content(local)

    def name(self, index: int) -> str:
        """Return the source's name and its name of the image."""
        which, local = self._find(index)
        return f"{self.source_names[which]}: {self.sources[which].name(local)}"

    def place_name(self, index: int) -> str:
        """Return the source's name and what it calls the image before reading it."""
        which, local = self._find(index)
        return f"{self.source_names[which]}: {self.sources[which].place_name(local)}"

    def skipped(self) -> dict[str, int]:
        """Return how many files or folders of all sources were skipped, by reason."""
        total: collections.Counter[str] = collections.Counter()
        for source in self.sources:
            total.update(source.skipped())
        return dict(total)

    def skipped_names(self) -> list[tuple[str, str]]:
        """Return (source and name, reason) of what was skipped."""
        return [
            (f"{where}: {name}", reason)
            for source, where in zip(self.sources, self.source_names)
            for name, reason in source.skipped_names()
        ]

    def left_out(self) -> dict[str, int]:
        """Return how many files of all sources are not read by their extension."""
        return extensions.merged(source.left_out() for source in self.sources)

    def warnings(self) -> list[str]:
        """Return the lines of all sources, each once."""
        lines = (line for source in self.sources for line in source.warnings())
        return list(dict.fromkeys(lines))

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the sources and their numbers of places."""
        digest = hashlib.sha256(repr(self.places).encode())
        for source in self.sources:
            digest.update(source.fingerprint.encode())
        return digest.hexdigest()[:32]

    def _where(self) -> str:
        parts = [
            f"{places / self.pass_length:.1%} {source.describe()}"
            for source, places in zip(self.sources, self.places)
        ]
        return (
            f"in {len(parts)} sources, {self.pass_length:,} places a pass: "
            f"{'; '.join(parts)}"
        )

    def describe(self) -> str:
        """Return one line: the images, then the sources with their shares of a pass."""
        return f"{messages.counted(len(self), 'image')} {self._where()}"


def _check_balance(
    lengths: list[int], weights: Sequence[float], names: list[str]
) -> None:
    # Logarithms neither overflow nor underflow.
    passes = [math.log10(n) - math.log10(w) for n, w in zip(lengths, weights)]
    rare, often = passes.index(max(passes)), passes.index(min(passes))
    excess = passes[rare] - passes[often] - math.log10(_MOST_TIMES)
    if excess > 1e-9:
        least = math.log10(weights[rare]) + excess
        raise errors.UserError(
            f"data.mixture: before every image of {names[rare]} (weight "
            f"{weights[rare]:g}) came once, those of {names[often]} (weight "
            f"{weights[often]:g}) would come more than {_MOST_TIMES:,} times each: "
            f"give {names[rare]} a weight of {_power(least)} or more, or leave it out"
        )


def _power(exponent: float) -> str:
    """Format 10**exponent, rounded up, even if no float can hold it."""
    whole = math.floor(exponent)
    digits = math.ceil(10 ** (exponent - whole) * 100) / 100
    return f"{digits * 10**whole:g}" if -5 < whole < 5 else f"{digits:g}e{whole:+d}"


def _places(lengths: list[int], weights: Sequence[float]) -> list[int]:
    """Return how many places each source has in a pass."""
    # Scaling by a power of two rounds nothing and keeps the sum finite.
    exponent = math.frexp(max(weights))[1]
    weights = [math.ldexp(weight, -exponent) for weight in weights]
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    # The factor absorbs rounding errors, which would add a place.
    least = max(
        math.ceil(length / share * (1 - 1e-12))
        for length, share in zip(lengths, shares)
    )
    exact = [least * share for share in shares]
    # Round down, then up for the largest remainders until the sum is right.
    places = [max(int(e + 1e-9), length) for e, length in zip(exact, lengths)]
    order = sorted(range(len(exact)), key=lambda i: (places[i] - exact[i], i))
    for i in order[: max(least - sum(places), 0)]:
        places[i] += 1
    return places


def _stride(length: int) -> int:
    """Return a step that visits all of `length` items, evenly spread at any time."""
    step = max(round(length * 0.6180339887498949), 1)
    while math.gcd(step, length) != 1:
        step += 1
    return step
