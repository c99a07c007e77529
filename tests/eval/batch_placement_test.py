import jax
import numpy as np

from dinov2_jax.eval import batch_placement


def test_as_many_devices_as_divide_the_batch():
    devices = len(jax.devices())
    assert batch_placement.make_mesh().size == devices
    assert batch_placement.make_mesh(1).size == 1
    assert 12 % batch_placement.make_mesh(12).size == 0


def test_batches_keep_their_values_wherever_they_live():
    mesh = batch_placement.make_mesh()
    for length in (mesh.size * 3, mesh.size * 3 + 1):
        x = np.arange(length * 2).reshape(length, 2)
        placed = batch_placement.split(x, mesh)
        np.testing.assert_array_equal(placed, x)
        whole = placed.sharding.is_fully_replicated
        assert whole == (length % mesh.size > 0 or mesh.size == 1)
