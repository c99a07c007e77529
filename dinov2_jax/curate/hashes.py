"""Perceptual hashes of 64 bits, of images and of their mirror images.

A hash has the signs of the low frequencies of an image of 32 x 32 pixels, as pHash does
(C. Zauner, 2010, section 3.2.1). It finds images that were encoded, scaled or coloured
anew, which features of models may not; those find crops, which it does not.

An image without structure, such as one of a single colour, has no hash: its signs would
be those of rounding errors, and it would be like all others of its kind. The hash is
then 0, which no other image has.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from scipy import fft

from dinov2_jax import errors
from dinov2_jax.curate import search

VERSION = 2  # of the hashes in files; the first had some of images without structure
BITS = 8  # default for the most bits by which hashes of the same image differ
_SIDE, _LOW = 32, 8  # px, frequencies
# Median size of frequencies from which signs tell images apart, in grey levels. That of
# rounding is .2, that of text and noise 8 to 14; of 130 tiles of photographs none is
# below 1.
_STRUCTURE = 1.0
_BANDS, _BAND_BITS = 4, 16
_AT_ONCE = 2**22  # candidates compared at once


def image_hashes(pixels: np.ndarray) -> np.ndarray:
    """Return the hashes of an image and of its mirror image, uint64 [2], or zeros.

    Args:
      pixels: Image, uint8 [H, W, 3].
    """
    small = Image.fromarray(pixels).convert("L")
    small = small.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = fft.dctn(np.asarray(small, np.float32), norm="ortho")[:_LOW, :_LOW]
    if np.median(np.abs(low)) < _STRUCTURE:
        return np.zeros(2, np.uint64)
    signs = np.where(np.arange(_LOW) % 2, -1, 1)  # of a mirror image's frequencies
    both = np.stack([low, low * signs]).reshape(2, -1)
    bits = both > np.median(both, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number of bits that differ, or that differ if one is mirrored.

    It is 64 if one of the images has no hash.

    Args:
      first: Hashes, uint64 [..., 2], as of `image_hashes`.
      second: Hashes of other images, uint64 [..., 2].
    """
    as_is = np.bitwise_count(first[..., 0] ^ second[..., 0])
    mirrored = np.bitwise_count(first[..., 0] ^ second[..., 1])
    without = (first[..., 0] == 0) | (second[..., 0] == 0)
    return np.where(without, 64, np.minimum(as_is, mirrored))


def find_pairs(
    hashes: np.ndarray, *, bits: int, most: int = search.MOST_PAIRS
) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of images whose hashes differ in few bits.

    Images with the same hashes are pairs only with the first of them, their twin, so
    that large groups have no more pairs than images; see `twins`.

    Args:
      hashes: Hashes of each image and its mirror image, uint64 [N, 2]; those without
        one are in no pair.
      bits: Most bits by which they differ.
      most: Number of pairs above which the search stops.

    Returns:
      First and second images, int32 [pairs] each, the first below the second.

    Raises:
      UserError: There are more than `most` pairs.
    """
    own = np.arange(len(hashes))
    twin = twins(hashes)
    same = own[twin != own]
    keys = [twin[same] * np.int64(len(hashes)) + same]
    count = len(same)
    first = own[(twin == own) & (hashes[:, 0] > 0)]
    unique = hashes[first]
    for column in (0, 1):
        others = np.ascontiguousarray(unique[:, column])
        for left, right in _near(np.ascontiguousarray(unique[:, 0]), others, bits):
            apart = left != right
            a, b = first[left[apart]], first[right[apart]]
            key = np.minimum(a, b) * np.int64(len(hashes)) + np.maximum(a, b)
            keys.append(np.unique(key))
            count += len(keys[-1])
            if count > most:
                raise errors.UserError(
                    f"more than {most:,} pairs of images have hashes that differ in "
                    f"at most {bits} bits: use a lower --bits"
                )
    left, right = np.divmod(np.unique(np.concatenate(keys)), len(hashes))
    return left.astype(np.int32), right.astype(np.int32)


def twins(hashes: np.ndarray) -> np.ndarray:
    """Return the first image with the same hashes as each image, int64 [N].

    Args:
      hashes: Hashes of each image and its mirror image, uint64 [N, 2]; images without
        one are their own twins.
    """
    _, first, inverse = np.unique(
        hashes, axis=0, return_index=True, return_inverse=True
    )
    twin = first[inverse.reshape(-1)]
    return np.where(hashes[:, 0] > 0, twin, np.arange(len(hashes)))


def _near(
    ours: np.ndarray, theirs: np.ndarray, bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of hashes that differ in at most `bits` bits, perhaps repeatedly.

    Of four bands of 16 bits, one differs in at most a fourth of the bits. So for each
    band and each such difference, only hashes with that band are compared.
    """
    for band in range(_BANDS):
        shift = np.uint64(band * _BAND_BITS)
        our_band, their_band = (
            ((x >> shift) & np.uint64(2**_BAND_BITS - 1)).astype(np.int64)
            for x in (ours, theirs)
        )
        order = np.argsort(their_band, kind="stable")
        sizes = np.bincount(their_band, minlength=2**_BAND_BITS)
        starts = np.cumsum(sizes) - sizes
        for difference in _differences(bits // _BANDS):
            wanted = our_band ^ difference
            rows = np.flatnonzero(sizes[wanted])
            for part in _portions(rows, sizes[wanted[rows]]):
                number = sizes[wanted[part]]
                left = np.repeat(part, number)
                ends = np.cumsum(number)
                within = np.arange(len(left)) - np.repeat(ends - number, number)
                right = order[np.repeat(starts[wanted[part]], number) + within]
                near = np.bitwise_count(ours[left] ^ theirs[right]) <= bits
                yield left[near], right[near]


def _differences(bits: int) -> list[int]:
    """Return all numbers of a band's width with at most `bits` ones."""
    return [
        sum(1 << place for place in places)
        for ones in range(bits + 1)
        for places in itertools.combinations(range(_BAND_BITS), ones)
    ]


def _portions(rows: np.ndarray, sizes: np.ndarray) -> Iterator[Any]:
    """Divide rows so that the sizes of each portion sum to about `_AT_ONCE`."""
    if not len(rows):
        return
    bounds = np.flatnonzero(np.diff(np.cumsum(sizes) // _AT_ONCE)) + 1
    yield from np.split(rows, bounds)
