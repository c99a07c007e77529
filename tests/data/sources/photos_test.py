"""Photos: splits of disjoint pixels, deterministic renderings, small to send."""

import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.sources import photos


@pytest.fixture(scope="module")
def sources():
    return {split: photos.PhotosSource(split) for split in photos.SPLITS}


def test_train_and_held_out_pixels_are_disjoint():
    # Counted pixel by pixel, for the real photographs and for odd sizes.
    sizes = [p.shape[:2] for p in photos.load_photographs()]
    for height, width in sizes + [(128, w) for w in range(64, 900, 37)]:
        used = {}
        for split in photos.SPLITS:
            used[split] = np.zeros((height, width), bool)
            for left, top, right, bottom in photos.boxes(
                split, width=width, height=height
            ):
                assert 0 <= left < right <= width and 0 <= top < bottom <= height
                used[split][top:bottom, left:right] = True
        seen = used["train"] | used["bank"]
        assert not np.any(seen & (used["val"] | used["test"]))
        assert not np.any(used["val"] & used["test"])


def test_whole_columns_are_held_out():
    for split, first in (("val", 128), ("test", 320)):
        lefts = {b[0] for b in photos.boxes(split, width=512, height=512)}
        assert lefts == {first}
    train = photos.boxes("train", width=512, height=512)
    assert {b[0] for b in train} == {0, 192, 384}
    assert {(b[2] - b[0], b[3] - b[1]) for b in train} == {(128, 128)}


def test_sizes_and_balance(sources):
    assert len(photos.photograph_names()) == 16
    assert {k: len(v) for k, v in sources.items()} == dict(
        train=585, bank=694, val=552, test=452
    )
    for source in sources.values():
        counts = np.bincount(source.labels, minlength=16)
        assert counts.min() > 0 and counts.max() / counts.sum() < 0.12
        assert source.labels.dtype == np.int32 and len(source.labels) == len(source)


def test_unseen_photographs_are_in_no_split():
    unseen = photos.load_unseen()
    assert [p.shape for p in unseen] == [(300, 451, 3), (400, 600, 3)]
    for picture in unseen:
        assert not any(
            np.array_equal(picture[:64, :64], photo[:64, :64])
            for photo in photos.load_photographs()
        )


def test_items(sources):
    for split, source in sources.items():
        for index in range(0, len(source), 29):
            image = source.open(index).pixels()
            assert image.dtype == np.uint8
            if split == "train":
                assert image.shape[0] == 128 and 64 <= image.shape[1] <= 128
            else:
                assert image.shape == (64, 64, 3)
    index = int(np.flatnonzero(sources["bank"].labels == 4)[5])
    assert sources["bank"].name(index).startswith("clock_motion at (")


def test_bank_tiles_are_the_photograph(sources):
    photo = photos.load_photographs()[0]
    np.testing.assert_array_equal(sources["bank"].open(1).pixels(), photo[64:128, :64])


def test_renderings_are_deterministic_and_differ(sources):
    val = sources["val"]
    again = photos.PhotosSource("val")
    np.testing.assert_array_equal(val.open(8).pixels(), again.open(8).pixels())
    # The four renderings of one tile: four pictures.
    four = {val.open(i).pixels().tobytes() for i in range(photos.RENDERINGS)}
    assert len(four) == 4 and len(set(val.name(i) for i in range(4))) == 1


def test_small_to_send(sources):
    data = pickle.dumps(sources["train"])
    assert len(data) < 40_000
    copy = pickle.loads(data).open(3).pixels()
    np.testing.assert_array_equal(copy, sources["train"].open(3).pixels())


def test_no_jax_and_no_network():
    code = (
        "import sys, socket\n"
        "def no(*a, **k): raise RuntimeError('network')\n"
        "socket.socket = no\n"
        "from dinov2_jax.data.sources import photos\n"
        "photos.PhotosSource('val').open(0)\n"
        "print([m for m in ('jax', 'grain', 'sklearn', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert socket.socket


def test_in_gray(sources):
    for split, source in sources.items():
        gray = photos.PhotosSource(split, channels=1)
        assert len(gray) == len(source) and gray.fingerprint != source.fingerprint
        for index in (0, len(source) // 2):
            pixels = source.open(index).pixels()
            luma = np.asarray(Image.fromarray(pixels).convert("L"))
            found = gray.open(index).pixels()
            np.testing.assert_array_equal(found, luma[..., None])
