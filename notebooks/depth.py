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
# # Depth from one image
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/dinov2-jax/dinov2_jax/blob/main/notebooks/depth.ipynb)
#
# Train a head that predicts metric depth from frozen patch features, and apply it to
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
# Without changes this runs offline: with a small model that is trained here in a minute
# or two, on the left part of one stereo photograph with measured depth, and is tested
# on the right part. One scene teaches no depth: with released weights, `HEAD` may be a
# released head, which needs no training, and `IMAGES` any photographs.
#
# Your data: `train/images`, `train/depth`, `test/images`, `test/depth`, with depth as
# 16-bit PNG in millimetres or `.npy` in metres. NYUd, KITTI and SUN RGB-D are read as
# they come.

# %%
MODEL = ""  # such as "dinov2_vits14"; empty: train a small model here
HEAD = ""  # such as "dinov2_vits14_nyu_dpt"; empty: train a head on DATA
IMAGES = []  # files to predict; empty: the test images of DATA
DATA = ""  # a folder as above; empty: a stereo photograph of scikit-image
MAX_DEPTH = 6  # metres; 10 for rooms
CROP = 144  # of training images, px
STEPS = 150  # 38400 in the reference
LEARNING_RATE = 3e-3  # 1e-4 in the reference

# %%
import pathlib

from dinov2_jax.eval.demo import labelled_images

if not MODEL:
    MODEL = "runs/quickstart"
    # !dinov2-jax train --config=quickstart --config.train.steps=100 --workdir={MODEL}
if not DATA:
    DATA = "runs/stereo"
    labelled_images.write_depth(pathlib.Path(DATA))

# %% [markdown]
# ## Train a head and measure it
# `lin1` is a linear layer on the last block; `lin4` takes four blocks, and `dpt` is a
# decoder. Look at `rmse`, in metres, and `abs_rel`.

# %%
if not HEAD:
    HEAD = "runs/depth/head.pth"
    # !dinov2-jax evaluate depth --model={MODEL} --data="{DATA}" --head-kind=lin1 \
    #     --max-depth={MAX_DEPTH} --crop {CROP} {CROP} --steps={STEPS} \
    #     --train-batch-size=8 --lr={LEARNING_RATE} --warmup-steps=10 --out=runs/depth

# %% [markdown]
# ## Predict
# `predict` writes a 16-bit PNG in millimetres for each image.

# %%
import shlex

images = IMAGES or sorted(pathlib.Path(DATA, "test/images").iterdir())[:3]
quoted = shlex.join(map(str, images))
# !dinov2-jax evaluate predict --model={MODEL} --head={HEAD} --images {quoted} \
#     --out=runs/depth_maps

# %%
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

shown, errors = [], []
for path in map(pathlib.Path, images):
    metres = np.asarray(Image.open(f"runs/depth_maps/{path.stem}.png")) / 1000
    measured = np.full(metres.shape, np.nan)
    truth = path.parent.parent / "depth" / f"{path.stem}.npy"
    if truth.exists():
        measured = np.load(truth)
        measured[measured == 0] = np.nan  # unknown
        errors.append(np.nanmean(np.abs(metres - measured)))
    shown.append((Image.open(path).convert("RGB"), metres, measured))

depths = np.concatenate([np.ravel(row[1:]) for row in shown])
low, high = np.nanpercentile(depths, (1, 99))
figure, axes = plt.subplots(
    len(shown), 3, figsize=(8.5, 2.6 * len(shown)), layout="constrained", squeeze=False
)
for row, pictures in zip(axes, shown):
    for axis, pixels in zip(row, pictures):
        drawn = axis.imshow(pixels, cmap="turbo", vmin=low, vmax=high)
        axis.axis("off")
for axis, title in zip(axes[0], ("image", "predicted", "measured")):
    axis.set_title(title)
figure.colorbar(drawn, ax=axes, label="m", shrink=0.6)
plt.show()
if errors:
    print(f"mean error {np.mean(errors):.2f} m")
    assert np.mean(errors) < MAX_DEPTH / 4
