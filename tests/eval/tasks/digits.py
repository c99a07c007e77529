"""Real labelled images that need no download, and small weights to look at them."""

import numpy as np
import random_weights
from PIL import Image
from sklearn import datasets

from dinov2_jax.weights import torch_writer

SIZE = 28  # px, two patches


def save_weights(path, seed=0):
    """A ViT of two blocks, 128 wide, in the reference's format."""
    shapes = random_weights.small_shapes("vits14")
    torch_writer.write(path, random_weights.tensors(shapes, seed))
    return path


def write(folder, indices, *, classes=10):
    """Some of scikit-learn's digits, one sub-folder a class."""
    images, labels = datasets.load_digits(return_X_y=True)
    for index in indices:
        if labels[index] < classes:
            pixels = (images[index].reshape(8, 8) * 15).astype(np.uint8)
            path = folder / str(labels[index]) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            large = Image.fromarray(pixels).resize((SIZE, SIZE))
            large.convert("RGB").save(path)
    return folder
