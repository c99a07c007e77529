"""Processes of one run that see different images or weights are refused."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import registry

ROOT = pathlib.Path(__file__).parents[2]
PROCESS = """
import sys
from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import registry
from dinov2_jax.runtime import distributed, same_inputs

coordinator, process, path = sys.argv[1:]
distributed.initialize(distributed.Cluster(coordinator, 2, int(process)))
source = registry.open_path(path, image_decoder.Decoder())
try:
    same_inputs.check_weights("init.source", f"{len(path):016x}")
    same_inputs.check_images(source)
    print("the same")
except errors.UserError as error:
    print(error)
"""


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for i in range(3):
        Image.fromarray(np.full((9, 8, 3), i, np.uint8)).save(root / f"{i}.png")
    return root


def digest(root):
    return registry.open_path(str(root), image_decoder.Decoder()).digest()


def test_the_digest(root):
    before = digest(root)
    os.utime(root / "1.png", (5, 5))  # as in a copy on another host
    assert digest(root) == before
    (root / "1.png").rename(root / "1b.png")
    renamed = digest(root)
    shutil.copy(root / "0.png", root / "3.png")
    assert len({before, renamed, digest(root)}) == 3


def processes(*paths):
    """Return what two processes print, which see the images of these folders."""
    with socket.create_server(("localhost", 0)) as server:
        coordinator = f"localhost:{server.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, coordinator, str(i), str(path)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, path in enumerate(paths)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [output.splitlines()[-1] for output in outputs]


def test_two_processes_that_see_different_images(root, tmp_path):
    assert processes(root, root) == ["the same"] * 2
    other = shutil.copytree(root, root.with_name("others"[: len(root.name)]))
    (other / "2.png").unlink()
    for line in processes(root, other):
        assert line.startswith(
            "process 1 sees other images than process 0 (2 and 3 in a pass): make the "
        )


def test_two_processes_that_read_different_weights(root, tmp_path):
    """Their digest is made of the length of the path."""
    for line in processes(root, shutil.copytree(root, tmp_path / "longer_name")):
        assert line.startswith(
            "process 1 read other weights from init.source than process 0: make the "
        )
