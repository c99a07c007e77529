"""Batches through shared memory: equal, gone when dropped, swept after a crash."""

import os
import pathlib
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from dinov2_jax.data import shared_batches


@pytest.fixture
def folder():
    folder = shared_batches.Folder()
    yield folder
    folder.remove()


def batch():
    rng = np.random.default_rng(0)
    return {
        "crops": rng.integers(0, 256, (3, 7, 5, 41, 3), np.uint8),
        "turned": rng.normal(size=(60, 50)).astype(np.float32).T,
        "flags": rng.random((64, 65)) < 0.5,
        "few": np.arange(3),
        "names": np.array(["a", None], object),
        "empty": np.zeros((0, 4000)),
    }


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


def test_there_and_back(folder):
    parcel = shared_batches.Packer(folder.path)(batch())
    assert len(pickle.dumps(parcel)) < 2000  # what goes through the pipe
    assert {name for name, *_ in parcel.arrays} == {"crops", "turned", "flags"}
    received = shared_batches.unpack(pickle.loads(pickle.dumps(parcel)))
    assert os.listdir(folder.path) == []  # nothing to forget
    folder.remove()
    assert_same(received, batch())  # what has been opened stays
    received["crops"][:] = 0  # and is the receiver's to change


def test_where_memory_is_full():
    sent = batch()
    assert shared_batches.Packer("/nowhere")(sent) is sent
    assert shared_batches.unpack(sent) is sent


def test_a_small_batch_needs_no_file(folder):
    small = {"few": np.arange(3)}
    assert shared_batches.Packer(folder.path)(small) is small


KILLED = """
import os, signal
import numpy as np
from dinov2_jax.data import shared_batches
folder = shared_batches.Folder()
shared_batches.Packer(folder.path)({"crops": np.zeros(100_000)})
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_loader_left_is_removed_by_the_next(folder):
    killed = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL
    left = pathlib.Path(killed.stdout.decode().strip())
    assert len(list(left.iterdir())) == 1
    shared_batches.Folder().remove()
    assert not left.exists()
    assert os.path.isdir(folder.path)  # of one that lives
