"""Pixels as features: every value in its place, by slow NumPy."""

import jax.numpy as jnp
import numpy as np

from dinov2_jax.eval import pixel_backbone
from dinov2_jax.eval.dense import dense_features
from dinov2_jax.models import model_config


def test_features_are_the_pixels():
    config = model_config.ModelConfig(384, 12, 6, patch_size=4, num_register_tokens=4)
    backbone = pixel_backbone.PixelBackbone.like(config)
    width = backbone.config.embed_dim
    images = np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)
    out = backbone.apply({}, jnp.asarray(images), layers=(3, 11))
    assert width == 48 and out.patches.shape == (2, 2, 3, width)
    for row in range(2):
        for column in range(3):
            patch = images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_array_equal(
                out.patches[:, row, column], patch.reshape(2, -1)
            )
    np.testing.assert_array_equal(out.prenorm[:, 1:], out.patches.reshape(2, 6, -1))
    np.testing.assert_array_equal(out.layers[3].patches, out.patches)
    np.testing.assert_allclose(out.cls.mean(axis=1), 0.0, atol=1e-6)
    # A plane stays a plane when it is shrunk.
    plane = np.broadcast_to(np.arange(8.0)[:, None, None], (1, 8, 8, 3))
    (small,) = backbone.apply({}, jnp.asarray(plane), method="class_tokens")
    rows = np.asarray(small).reshape(4, 4, 3)
    np.testing.assert_allclose(np.diff(rows[1:3], axis=0), 2.0, atol=1e-5)
    assert np.ptp(rows, axis=(1, 2)).max() < 1e-5


def test_dense_tasks_take_its_raw_tokens():
    config = model_config.ModelConfig(384, 12, 6, patch_size=4)
    backbone = pixel_backbone.PixelBackbone.like(config)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 8, 3)))
    for norm in (True, False):
        taps = dense_features.dense_features(
            backbone, pixel_backbone.PARAMS, images, blocks=(2, 5), norm=norm
        )
        for patches, cls in taps:
            assert patches.shape == (1, 2, 2, 48) and cls.shape == (1, 48)
