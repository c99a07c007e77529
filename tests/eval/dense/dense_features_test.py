import jax
import numpy as np
import pytest
import vits

from dinov2_jax.eval.dense import dense_features


@pytest.fixture(scope="module")
def backbone():
    module = vits.make(
        embed_dim=16,
        depth=3,
        num_heads=2,
        patch_size=4,
        image_size=16,
        num_register_tokens=2,
    )
    images = np.random.default_rng(0).standard_normal((2, 16, 20, 3), np.float32)
    return module, module.init(jax.random.key(0), images)["params"], images


@pytest.mark.parametrize("norm", [pytest.param(True, marks=pytest.mark.slow), False])
def test_taps_are_the_tokens_after_each_block(backbone, norm):
    module, params, images = backbone
    taps = dense_features.dense_features(
        module, params, images, blocks=(0, 2), norm=norm
    )
    out = module.apply({"params": params}, images, layers=(0, 2))
    for (patches, cls), block in zip(taps, (0, 2)):
        tokens = np.asarray(out.layers[block].prenorm)
        if norm:
            mean = tokens.mean(-1, keepdims=True)
            tokens = (tokens - mean) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(cls, tokens[:, 0], atol=1e-5)
        np.testing.assert_allclose(
            patches, tokens[:, 3:].reshape(2, 4, 5, 16), atol=1e-5
        )


def test_images_are_padded_with_the_mean_colour(backbone):
    module, params, images = backbone
    cut = images[:, :15, :18]
    padded = np.pad(cut, ((0, 0), (0, 1), (1, 1), (0, 0)))
    settings = {"blocks": (2,), "norm": True}
    mine, wanted = (
        dense_features.dense_features(module, params, x, **settings)[0][0]
        for x in (cut, padded)
    )
    np.testing.assert_array_equal(mine, wanted)


def test_blocks_of_the_released_heads():
    assert dense_features.four_blocks(12) == (2, 5, 8, 11)
    assert dense_features.four_blocks(24) == (4, 11, 17, 23)
    assert dense_features.four_blocks(40) == (9, 19, 29, 39)
    assert dense_features.four_blocks(8) == (1, 3, 5, 7)
    assert dense_features.last_blocks(12, 4) == (8, 9, 10, 11)
