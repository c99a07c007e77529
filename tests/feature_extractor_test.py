"""Extracted features are those of the module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vits

from dinov2_jax import feature_extractor, sharding
from dinov2_jax.data import preprocessing

PREPARE = preprocessing.Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))
MODELS = {
    "mlp": {},
    "swiglu": {"ffn_layer": "swiglufused"},
    "registers": {
        "num_register_tokens": 3,
        "interpolate_offset": 0.0,
        "interpolate_antialias": True,
    },
    "bare": {
        "qkv_bias": False,
        "proj_bias": False,
        "ffn_bias": False,
        "layerscale": 0.0,
        "num_register_tokens": 1,
    },
    "one block": {"depth": 1},
}


def model(seed=0, **fields):
    """A small module and parameters all of which matter."""
    defaults = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 4}
    module = vits.make(**{**defaults, "image_size": 20, **fields})
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 20, 20, 3)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        scale = 0.3 if name == "kernel" else 0.5
        center = 1.0 if name in ("scale", "gamma") else 0.0
        return np.float32(center + scale * rng.standard_normal(leaf.shape))

    return module, jax.tree_util.tree_map_with_path(draw, shapes["params"])


def images(count, size):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def expected(module, params, pixels):
    return jax.jit(module.apply)({"params": params}, PREPARE.normalize(pixels))


def extractor(module, kind, devices=1, **settings):
    return feature_extractor.FeatureExtractor(
        module,
        kind=kind,
        mean=PREPARE.mean,
        std=PREPARE.std,
        mesh=sharding.make_mesh(devices=jax.devices()[:devices]),
        **settings,
    )


@pytest.mark.parametrize(
    "name, size",
    [
        ("mlp", 20),
        ("swiglu", 28),
        ("registers", 28),
        ("bare", 20),
        ("one block", 28),
        *(
            pytest.param(name, size, marks=pytest.mark.slow)
            for name, size in [
                ("mlp", 28),
                ("swiglu", 20),
                ("registers", 20),
                ("bare", 28),
                ("one block", 20),
            ]
        ),
    ],
)
def test_every_kind_equals_the_module(name, size):
    module, params = model(**MODELS[name])
    pixels = images(3, size)
    whole = expected(module, params, pixels)
    mean = np.mean(whole.patches, axis=(1, 2))
    wanted = {
        "cls": whole.cls,
        "patch_mean": mean,
        "cls+patch_mean": np.concatenate([whole.cls, mean], -1),
        "patches": whole.patches,
    }
    assert tuple(wanted) == feature_extractor.KINDS
    for kind, features in wanted.items():
        found = extractor(module, kind)(params, pixels)
        shape = feature_extractor.features_shape(module, kind, size)
        assert found.shape == (3, *shape)
        np.testing.assert_allclose(found, features, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("whole_weights", [False, True])
@pytest.mark.parametrize("block", ["plain", "folded"])
def test_devices_and_forms_of_blocks_change_nothing(whole_weights, block):
    module, params = model(num_register_tokens=2)
    pixels = images(5, 20)  # not a multiple of the devices
    found = extractor(
        module.clone(block=block), "cls", devices=8, whole_weights=whole_weights
    )(params, pixels)
    np.testing.assert_allclose(found, expected(module, params, pixels).cls, atol=3e-5)


def test_bfloat16_is_no_worse_than_the_modules():
    module, params = model()
    pixels = images(4, 20)
    exact = np.asarray(expected(module, params, pixels).cls)
    low = module.clone(dtype=jnp.bfloat16)
    theirs = np.asarray(expected(low, params, pixels).cls, np.float32)
    ours = extractor(low, "cls")(params, pixels)
    assert ours.dtype == np.float32
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    assert error < 1.5 * np.linalg.norm(theirs - exact) / np.linalg.norm(exact)


def test_large_scores_do_not_overflow():
    module, params = model()
    params["blocks"]["attn"]["qkv"]["kernel"] *= 30
    pixels = images(2, 20)
    whole = expected(module, params, pixels)
    for kind, wanted in {
        "cls": whole.cls,
        "patch_mean": np.mean(whole.patches, (1, 2)),
    }.items():
        found = extractor(module, kind)(params, pixels)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
