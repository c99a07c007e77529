# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Segment images with a linear head
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/dinov2-jax/dinov2_jax/blob/main/notebooks/segmentation.ipynb)
#
# Train a linear layer on frozen patch features, measure the mean IoU, and segment new
# images.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("dinov2_jax") is None:  # as on Colab
    package = "git+https://github.com/dinov2-jax/dinov2_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# ## Settings
# Without changes this runs offline, with a small model that is trained here in a minute
# or two, on a photograph of coins that comes with scikit-image: the head learns from
# its left part and is tested on its right part.
#
# Your data: `train/images`, `train/masks`, `val/images`, `val/masks` (masks are PNG
# with the class as value, 255 where unknown) and, if you like, `classes.txt`. ADE20K,
# VOC2012 and Cityscapes are read as they come.

# %%
MODEL = ""  # such as "dinov2_vits14"; empty: train a small model here
DATA = ""  # a folder as above; empty: coins
SHORT = 192  # short side of the images, px; 512 for released weights
STEPS = 150  # 40000 in the reference
BATCH = 8  # 16 in the reference
LEARNING_RATE = 1e-2  # 1e-3 in the reference

# %%
import pathlib

import numpy as np
from PIL import Image
from skimage import filters, segmentation

from dinov2_jax.data.sources import photos


def write_coins(folder):
    named = dict(zip(photos.photograph_names(), photos.load_photographs()))
    pixels = named["coins"]
    gray = pixels[..., 0]
    markers = np.select([gray < 30, gray > 150], [1, 2])
    coins = segmentation.watershed(filters.sobel(gray), markers) == 2
    for part, lefts in (("train", range(0, 129, 32)), ("val", (256,))):
        for kind in ("images", "masks"):
            pathlib.Path(folder, part, kind).mkdir(parents=True, exist_ok=True)
        for top in (0, 58, 116, 175):
            for left in lefts:
                box = slice(top, top + 128), slice(left, left + 128)
                for kind, shown in ("images", pixels), ("masks", coins.astype("uint8")):
                    path = f"{folder}/{part}/{kind}/{top:03}_{left:03}.png"
                    Image.fromarray(shown[box]).save(path)
    pathlib.Path(folder, "classes.txt").write_text("background\ncoin\n")


if not MODEL:
    MODEL = "runs/quickstart"
    # !dinov2-jax train --config=quickstart --config.train.steps=100 --workdir={MODEL}
if not DATA:
    DATA = "runs/coins"
    write_coins(DATA)

# %% [markdown]
# ## Train and measure
# The backbone stays frozen. `--baselines` repeats the same with the ViT untrained and
# with pixels as features. A head trained before, or a released one such as
# `dinov2_vits14_ade20k_linear`, is used with `--head`. Coins are bright, so here even
# pixels get far; how much better a model is shows on harder images.

# %%
# !dinov2-jax evaluate segmentation --model={MODEL} --data="{DATA}" \
#     --short={SHORT} --stride={SHORT} --steps={STEPS} --train-batch-size={BATCH} \
#     --lr={LEARNING_RATE} --warmup-steps=10 --baselines --out=runs/segmentation

# %%
import json

import matplotlib.pyplot as plt

results = json.loads(pathlib.Path("runs/segmentation/results.json").read_text())
scores = {
    "this model": results["numbers"]["segmentation/mIoU"],
    "untrained": results["numbers"]["segmentation/mIoU_random_init"],
    "pixels": results["numbers"]["segmentation/mIoU_pixels"],
}
figure, axes = plt.subplots(figsize=(6, 1.7))
bars = axes.barh(list(scores), list(scores.values()))
axes.bar_label(bars, fmt="{:.3f}", padding=3)
axes.invert_yaxis()
axes.set(xlim=(0, 1.15), xlabel="mean IoU")
plt.show()
assert scores["this model"] > 0.8

# %% [markdown]
# ## Segment new images
# `predict` writes a palette PNG whose values are the classes, and a JSON file with
# their shares.

# %%
import shlex

chosen = sorted(pathlib.Path(DATA, "val/images").iterdir())[:3]
images = shlex.join(map(str, chosen))
# !dinov2-jax evaluate predict --model={MODEL} --head=runs/segmentation/head.pth \
#     --short={SHORT} --images {images} --out=runs/segmented

# %%
figure, axes = plt.subplots(len(chosen), 3, figsize=(7.5, 2.6 * len(chosen)))
for row, path in zip(axes, chosen):
    mask = pathlib.Path(DATA, "val/masks", path.stem + ".png")
    predicted = pathlib.Path("runs/segmented", path.stem + ".png")
    for axis, shown in zip(row, (path, mask, predicted)):
        pixels = Image.open(shown)
        # Values are classes, whatever the palette; in photographs they are colours.
        axis.imshow(pixels if shown == path else np.asarray(pixels))
        axis.axis("off")
for axis, title in zip(axes[0], ("image", "truth", "predicted")):
    axis.set_title(title)
figure.tight_layout()
plt.show()
