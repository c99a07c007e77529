"""A tiny backbone, its fine-tuner and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import vits

from dinov2_jax.eval.finetuning import adaptation, finetuner, recipe

CLASSES = 5


def backbone(**options):
    """A ViT of two blocks, 32 wide, for 16 px, and its parameters."""
    settings = dict(embed_dim=32, depth=2, num_heads=2, patch_size=4, image_size=16)
    module = vits.make(**settings, layerscale=1.0, **options)
    image = np.zeros((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        around = 1.0 if path[-1].key in ("scale", "gamma") else 0.0
        return jnp.float32(around + 0.1 * rng.standard_normal(leaf.shape))

    return module, jax.tree_util.tree_map_with_path(draw, shapes)


def tuner(module, part=None, **settings):
    """A fine-tuner of images that are normalised already."""
    numbers = dict(steps=4, batch_size=8, group_size=4, lr=1e-3) | settings
    return finetuner.FineTuner(
        module,
        recipe.Recipe(**numbers),
        part or adaptation.Adaptation(),
        CLASSES,
        (0.5,) * 3,
        (0.25,) * 3,
    )


def batch(seed, groups=2, images=4):
    """Images, float32 [G, B, 16, 16, 3], and labels [G, B]."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(groups, images, 16, 16, 3)).astype(np.float32)
    return pixels, rng.integers(0, CLASSES, (groups, images))
