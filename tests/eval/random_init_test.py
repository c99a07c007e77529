"""The baseline's features are alive where the reference's initialisation is dead."""

import jax
import numpy as np
import vits

from dinov2_jax.eval import random_init


def test_class_token_depends_on_the_image_and_shapes_are_the_backbones():
    model = vits.make(embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32)
    images = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)

    apply = jax.jit(lambda params: model.apply({"params": params}, images).cls)

    def spread(params):
        cls = np.asarray(apply(params))
        return np.mean(np.std(cls, axis=0)) / np.mean(np.abs(cls))

    dead = jax.jit(model.init)(jax.random.key(0), images)["params"]
    alive = jax.jit(lambda key: random_init.fair_random_params(model, key))(
        jax.random.key(0)
    )
    assert spread(dead) < 1e-2
    assert spread(alive) > 0.1
    shapes = [jax.tree.map(np.shape, tree) for tree in (dead, alive)]
    assert shapes[0] == shapes[1]
    kernel = np.asarray(alive["blocks"]["mlp"]["fc2"]["kernel"])  # fan_in 128
    np.testing.assert_allclose(kernel.std(), 128**-0.5, rtol=1e-3)
