import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch

from dinov2_jax.eval.segmentation import segmentation_head


@pytest.mark.parametrize("denominator", segmentation_head.DENOMINATORS)
def test_cross_entropy_equals_torch(denominator):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, 5, 6), np.float32)
    labels = rng.integers(0, 6, (2, 19, 23))
    labels[0, :4] = segmentation_head.IGNORE
    x = torch.nn.functional.interpolate(
        torch.tensor(np.moveaxis(logits, -1, 1)), (19, 23), mode="bilinear"
    )
    reduction = "sum" if denominator == "all" else "mean"
    wanted = torch.nn.functional.cross_entropy(
        x, torch.tensor(labels), ignore_index=255, reduction=reduction
    )
    wanted = wanted / (labels.size if denominator == "all" else 1)
    mine = segmentation_head.cross_entropy(
        jnp.asarray(logits), jnp.asarray(labels), denominator=denominator
    )
    np.testing.assert_allclose(mine, wanted, rtol=1e-5)


def test_batch_norm_equals_torch():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((3, 4, 5, 8)) * 2 + 1).astype(np.float32)
    params = segmentation_head.init(0, 8, 3)
    norm = torch.nn.BatchNorm2d(8)
    conv = torch.nn.Conv2d(8, 3, 1)
    conv.load_state_dict(
        {
            name: torch.tensor(np.array(params[f"conv_seg.{name}"]))
            for name in ("weight", "bias")
        }
    )
    image = torch.tensor(np.moveaxis(x, -1, 1))
    for _ in range(2):
        wanted = conv(norm(image)).detach().numpy()
        mine, statistics = segmentation_head.train_logits(params, jnp.asarray(x))
        params |= statistics
        np.testing.assert_allclose(mine, np.moveaxis(wanted, 1, -1), atol=1e-5)
    for name in segmentation_head.STATISTICS:
        wanted = norm.state_dict()[name.removeprefix("bn.")]
        np.testing.assert_allclose(params[name], wanted, rtol=1e-5)
    wanted = conv(norm.eval()(image)).detach().numpy()
    mine = segmentation_head.logits(params, jnp.asarray(x))
    np.testing.assert_allclose(mine, np.moveaxis(wanted, 1, -1), atol=1e-5)


def test_maps_of_other_grids_are_resized_to_the_first():
    maps = [jnp.zeros((1, 4, 6, 2)), jnp.ones((1, 2, 3, 3))]
    joined = segmentation_head.joined(maps)
    assert joined.shape == (1, 4, 6, 5)
    assert (joined[..., 2:] == 1).all()
