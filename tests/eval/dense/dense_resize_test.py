import jax
import numpy as np
import pytest
from peers import torch

from dinov2_jax.eval.dense import dense_resize


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(37, 64), (3, 5), (1, 29), (11, 13)])
def test_equals_torch_in_value_and_gradient(size, align_corners):
    x = np.random.default_rng(0).standard_normal((2, 11, 13, 3), np.float32)
    reference = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    out = torch.nn.functional.interpolate(
        reference, size, mode="bilinear", align_corners=align_corners
    )
    out.square().sum().backward()
    mine = dense_resize.bilinear(x, size, align_corners=align_corners)
    np.testing.assert_allclose(
        mine, np.moveaxis(out.detach().numpy(), 1, -1), atol=1e-5
    )
    gradient = jax.grad(
        lambda y: (
            dense_resize.bilinear(y, size, align_corners=align_corners) ** 2
        ).sum()
    )(x)
    np.testing.assert_allclose(
        gradient, np.moveaxis(reference.grad.numpy(), 1, -1), atol=1e-4
    )


@pytest.mark.parametrize(
    "size, bounds, wanted",
    [
        ((480, 640), {"short": 512}, (512, 683)),
        ((375, 500), {"short": 512, "long": 2048}, (512, 683)),
        ((100, 1000), {"short": 512, "long": 2048}, (205, 2048)),
        ((480, 640), {"short": 512, "ratio": 1.32}, (675, 900)),
    ],
)
def test_sizes_keep_the_proportion(size, bounds, wanted):
    assert dense_resize.rescaled_size(size, **bounds) == wanted


def test_pixels_are_rounded_as_in_torch():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (31, 17, 3), np.uint8)
    mine = dense_resize.resize_image(image, (20, 40))
    x = torch.tensor(np.moveaxis(image, -1, 0)[None].astype(np.float32))
    out = torch.nn.functional.interpolate(x, (20, 40), mode="bilinear")[0]
    wanted = np.floor(np.moveaxis(out.numpy(), 0, -1) + 0.5)
    assert np.abs(mine.astype(int) - wanted).max() <= 1
    assert (mine == wanted).mean() > 0.999


def test_labels_take_the_nearest_pixel():
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    wanted = [[1, 1, 2], [1, 1, 2], [3, 3, 4], [3, 3, 4]]
    assert dense_resize.resize_labels(labels, (4, 3)).tolist() == wanted


def test_a_quarter_turn_is_exact():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    turned = dense_resize.rotate(image, 90.0, nearest=True)
    assert (turned == np.rot90(image)).all()
