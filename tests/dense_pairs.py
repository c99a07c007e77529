"""Small data sets of drawn images, with masks and depth maps, and a tiny backbone."""

import jax
import numpy as np
import vits
from PIL import Image

from dinov2_jax import pretrained
from dinov2_jax.data import preprocessing

PATCH = 4


def model():
    """A backbone 16 wide whose patch features see colours."""
    module = vits.make(
        embed_dim=16, depth=4, num_heads=2, patch_size=PATCH, image_size=32
    )
    params = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    return pretrained.Model(module, params, {}, preprocessing.Preprocessing(36, 32))


def scene(rng, size=(40, 48)):
    """An image with a bright, near box; its mask, and its depth in metres."""
    height, width = size
    image = rng.integers(0, 60, (height, width, 3), np.uint8)
    mask = np.zeros(size, np.uint8)
    depth = np.full(size, 4.0, np.float32)
    top, left = int(rng.integers(height // 2)), int(rng.integers(width // 2))
    box = np.s_[top : top + height // 2, left : left + width // 2]
    image[box] += 190
    mask[box], depth[box] = 1, 2.0
    mask[:2] = 255
    depth[:, :2] = 0
    return image, mask, depth


def write(root, counts, seed=0):
    """Writes images, masks and depth (millimetres) of splits below a folder."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        folders = [root / split / name for name in ("images", "masks", "depth")]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in range(count):
            image, mask, depth = scene(rng)
            values = (depth * 1000).astype(np.uint16)
            for folder, x in zip(folders, (image, mask, values)):
                Image.fromarray(x).save(folder / f"{i}.png")
    return root
