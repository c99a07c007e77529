"""Backbones of every kind with weights in which every parameter matters."""

import jax
import jax.numpy as jnp
import numpy as np
import vits

# name -> (settings, image size): height and width differ, and so do stored grid and
# baked grid.
KINDS = {
    "mlp": (dict(image_size=16), (16, 16)),
    "swiglu_registers": (
        dict(
            ffn_layer="swiglufused",
            num_register_tokens=4,
            interpolate_offset=0.0,
            interpolate_antialias=True,
        ),
        (24, 12),
    ),
    "bare": (
        dict(
            patch_size=5,
            image_size=15,
            in_chans=4,
            num_register_tokens=1,
            layerscale=0.0,
            qkv_bias=False,
            proj_bias=False,
            ffn_bias=False,
        ),
        (10, 20),
    ),
    "bare_swiglu": (dict(ffn_layer="swiglufused", ffn_bias=False), (16, 20)),
}


def make(**changes):
    sizes = dict(embed_dim=24, depth=3, num_heads=3, patch_size=4, image_size=16)
    return vits.make(**(sizes | dict(layerscale=1.0) | changes))


def random_params(module, seed=0, scale=0.3):
    """Gaussian weights as NumPy arrays; LayerScale and norms around 1."""
    image = jnp.zeros((1, *[module.config.image_size] * 2, module.config.in_chans))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        mean = 1.0 if path[-1].key in ("gamma", "scale") else 0.0
        return (mean + scale * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_images(module, size, batch, seed=1):
    shape = (batch, *size, module.config.in_chans)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relative_error(found, expected):
    """max|a - b| / max|b|."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == np.float32
    return np.abs(found - expected).max() / np.abs(expected).max()
