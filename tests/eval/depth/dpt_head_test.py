import jax
import numpy as np
import pytest

from dinov2_jax.eval.depth import dpt_head


@pytest.mark.parametrize(
    "width, total",
    [(384, 13_961_377), (768, 24_193_921), (1024, 34_190_017), (1536, 61_800_769)],
)
def test_sizes_of_the_released_heads(width, total):
    shapes = dpt_head.shapes(width)
    assert len(shapes) == 56
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == total


def test_maps_of_odd_grids():
    width = 16

    def depth(seed):
        params = dpt_head.init(seed, width, channels=8)
        taps = [(np.zeros((1, 35, 46, width)), np.zeros((1, width)))] * 4
        return dpt_head.depth(params, taps, depth_range=(0.001, 10.0))

    assert jax.eval_shape(lambda: depth(0)).shape == (1, 576, 736, 1)


def test_initial_weights_have_the_deviations_of_torch():
    params = dpt_head.init(0, 64, channels=32)
    conv = np.asarray(params["project.conv.weight"])
    assert conv.std() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03)
    assert (params["project.conv.bias"] == 0).all()
    linear = np.asarray(params["reassemble_blocks.readout_projects.0.0.weight"])
    assert np.abs(linear).max() == pytest.approx(128**-0.5, rel=0.01)
