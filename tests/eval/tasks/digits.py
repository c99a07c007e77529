"""Real labelled images that need no download, and small weights to look at them."""

import json

import numpy as np
import random_weights
from PIL import Image
from sklearn import datasets

from dinov2_jax.eval import __main__ as program
from dinov2_jax.weights import torch_writer

SIZE = 28  # px, two patches


def save_weights(path, seed=0):
    """A ViT of two blocks, 128 wide, in the reference's format."""
    shapes = random_weights.small_shapes("vits14")
    torch_writer.write(path, random_weights.tensors(shapes, seed))
    return path


def write_all(root, *, train, val):
    """Small weights, and digits to train on and to test on."""
    save_weights(root / "small.pth")
    write(root / "train", train)
    write(root / "val", val)
    return root


def evaluate(root, task, *flags, out="out", **paths):
    """Runs a task; returns its exit code, and results.json if there is one.

    The images are those of `write_all`, or of train=, val=.
    """
    paths = {"train": root / "train", "val": root / "val"} | paths
    both = [f"--{k}-path={v}" for k, v in paths.items()]
    code = program.main(
        [
            task,
            f"--model={root / 'small.pth'}",
            "--num-heads=2",
            f"--out={root / out}",
            f"--cache={root / 'cache'}",
            f"--size={SIZE}",
            f"--resize={SIZE}",
            *(both if task != "retrieval" else []),
            *flags,
        ]
    )
    path = root / out / "results.json"
    return code, json.loads(path.read_text()) if path.exists() else None


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
