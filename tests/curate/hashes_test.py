"""Perceptual hashes: the search beside NumPy, and what they find of photographs."""

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.curate import changes, hashes
from dinov2_jax.data.sources import photos


@pytest.fixture(scope="module")
def tiles():
    """Some windows of the photographs, and their hashes."""
    source = photos.PhotosSource("train")
    pictures = [source.open(i).pixels() for i in range(0, len(source), 12)]
    return pictures, np.stack([hashes.image_hashes(x) for x in pictures])


def test_a_hash_has_the_signs_of_low_frequencies(tiles):
    """Beside a slow version; the mirror image is really mirrored."""
    place = np.arange(32)
    cosines = np.cos(np.pi * place[:, None] * (2 * place + 1) / 64)
    cosines[0] /= np.sqrt(2)
    for picture, found in zip(tiles[0][:5], tiles[1]):
        small = Image.fromarray(picture).convert("L").resize((32, 32), 1)
        for pixels, value in zip((small, np.asarray(small)[:, ::-1]), found):
            pixels = np.asarray(pixels, np.float64)
            low = (cosines @ pixels @ cosines.T)[:8, :8].ravel()
            bits = "".join("01"[int(x > np.median(low))] for x in low)
            assert int(value) == int(bits, 2)


# Recalls at 8 bits, a little below those measured; textures have weak frequencies.
@pytest.mark.parametrize(
    "name, least",
    [
        ("JPEG 75", 0.98),
        ("JPEG 30", 0.9),
        ("half size", 0.98),
        ("blur 2 px", 0.98),
        ("width 90 %", 0.98),
        ("grey", 1.0),
        ("mirrored", 0.98),
        ("brightness 1.3", 0.9),
        ("colour, contrast", 0.9),
    ],
)
def test_changed_photographs_are_found(tiles, name, least):
    pictures, own = tiles
    changed = [changes.apply(name, x, seed=(0, i)) for i, x in enumerate(pictures)]
    theirs = np.stack([hashes.image_hashes(x) for x in changed])
    assert np.mean(hashes.distance(own, theirs) <= 8) >= least


def test_other_photographs_are_not(tiles):
    distances = hashes.distance(tiles[1][:, None], tiles[1])
    apart = ~np.eye(len(distances), dtype=bool)
    assert np.mean(distances[apart] <= 8) < 0.01


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_pairs_are_those_of_numpy(bits):
    """Random hashes with near copies, some of them of the mirror image."""
    rng = np.random.default_rng(bits)
    values = rng.integers(2**64, size=(300, 2), dtype=np.uint64)
    for row in range(100, 200):
        flips = rng.choice(64, rng.integers(12), replace=False).astype(np.uint64)
        mask = np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
        side = row % 2
        values[row] = values[row - 100][[side, 1 - side]] ^ mask
    distances = hashes.distance(values[:, None], values[None])
    distances = np.minimum(distances, distances.T)
    expected = {(a, b) for a, b in zip(*np.nonzero(distances <= bits)) if a < b}
    left, right = hashes.find_pairs(values, bits=bits)
    assert len(expected) > 3
    assert list(zip(left, right)) == sorted(expected)


def test_equal_hashes_are_pairs_with_the_first():
    values = np.array([[1, 99], [5, 2**60], [1, 99], [1, 99]], np.uint64)
    left, right = hashes.find_pairs(values, bits=0)
    assert (left.tolist(), right.tolist()) == ([0, 0], [2, 3])


def test_images_without_structure_are_like_no_other():
    """Of one colour, a gradient, and those with the noise of JPEG."""
    grey = np.linspace(60, 190, 96)[:, None, None]
    pictures = [np.full((80, 96, 3), c) for c in ((250, 10, 0), (0, 0, 0), (9, 9, 255))]
    pictures += [grey.repeat(96, 1).repeat(3, 2), grey[::-1].repeat(80, 1) * (1, 1, 0)]
    pictures = [np.uint8(x) for x in pictures]
    pictures += [changes.apply("JPEG 75", x, seed=(0,)) for x in pictures]
    found = np.stack([hashes.image_hashes(x) for x in pictures])
    assert not found.any()
    assert np.all(hashes.distance(found[:, None], found) == 64)
    assert not len(hashes.find_pairs(found, bits=16)[0])
    np.testing.assert_array_equal(hashes.twins(found), np.arange(len(found)))


def test_too_many_pairs_are_refused():
    values = np.zeros((20, 2), np.uint64)
    with pytest.raises(errors.UserError, match="more than 10 pairs"):
        values[:, 0] = np.arange(1, 21)
        hashes.find_pairs(values, bits=8, most=10)
