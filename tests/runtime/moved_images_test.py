"""A run goes on where its images are the same, wherever they are."""

import pytest

from dinov2_jax import errors
from dinov2_jax.runtime import workdir
from tests.data.loader_test import Flat


class Images(Flat):
    def __init__(self, length, fingerprint):
        super().__init__(length)
        self.fingerprint = fingerprint


def test_moved_images_are_the_same_images(tmp_path):
    moved = ["data.path: '/a' -> '/b'"]
    workdir.update_data_record(Images(9, "a"), tmp_path, resumed=False, write=True)
    workdir.check_images(Images(9, "a"), tmp_path, moved)
    workdir.check_images(Images(8, "b"), tmp_path, [])  # changed, not moved
    with pytest.raises(errors.UserError) as caught:
        workdir.check_images(Images(9, "b"), tmp_path, moved)
    said = str(caught.value)
    assert moved[0] in said and "--workdir" in said and "\n" not in said
