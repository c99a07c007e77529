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
# # Features and pictures of your photographs
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/dinov2-jax/dinov2_jax/blob/main/notebooks/features.ipynb)
#
# Load a model, compute features of a few images, compare whole images, and draw what
# the patch features and the attention distinguish.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("dinov2_jax") is None:  # as on Colab
    package = "git+https://github.com/dinov2-jax/dinov2_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# ## Settings
# Without changes this runs offline: on photographs that come with scikit-image, with a
# small model that is trained here in a minute or two. That model knows edges, textures
# and tones; for objects set `MODEL` to released weights, which are downloaded once.

# %%
MODEL = ""  # such as "dinov2_vits14_reg"; empty: train a small model here
IMAGES = ""  # a folder of your photographs; empty: those of scikit-image
SHOWN = 4  # photographs to look at
SIZE = 480  # longer side for pictures, px

# %%
import pathlib
import shlex

from PIL import Image

from dinov2_jax.data.sources import photos

if not MODEL:
    MODEL = "runs/quickstart"
    # !dinov2-jax train --config=quickstart --config.train.steps=100 --workdir={MODEL}
if not IMAGES:
    IMAGES = "runs/photographs"
    pathlib.Path(IMAGES).mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(photos.photograph_names(), photos.load_photographs()):
        Image.fromarray(pixels).save(f"{IMAGES}/{name}.jpg")
paths = sorted(path for path in pathlib.Path(IMAGES).iterdir() if path.is_file())
paths = paths[:: max(len(paths) // SHOWN, 1)][:SHOWN]
print(*paths, sep="\n")

# %% [markdown]
# ## Pictures
# `visualize` draws the first three principal components of the patch features in red,
# green and blue, jointly over all images: one colour means the same everywhere.

# %%
chosen = shlex.join(map(str, paths))
# !dinov2-jax visualize {chosen} --model={MODEL} --size={SIZE} --out=runs/pictures
Image.open("runs/pictures/pca.png")

# %% [markdown]
# It also draws where the class token looks, by head of the last block. With released
# weights add `--foreground` to remove the background.

# %%
Image.open(f"runs/pictures/attention_{paths[0].stem}.png")

# %% [markdown]
# ## Features of a whole folder
# `embed` writes a table with one row per image. It uses all devices, and continues
# where it was stopped.

# %%
# !dinov2-jax embed "{IMAGES}" --model={MODEL} --out=runs/features.parquet --overwrite

# %%
import numpy as np
import pyarrow.parquet

table = pyarrow.parquet.read_table("runs/features.parquet")
embedded = dict(zip(table["name"].to_pylist(), table["features"].to_pylist()))
print(len(embedded), "images, such as", *list(embedded)[:3])

# %% [markdown]
# ## The same in Python
# `preprocess` takes paths, Pillow images or arrays; it resizes, crops the centre and
# normalises. A call of the model returns the class token, the registers and the
# patches.

# %%
import dinov2_jax

model = dinov2_jax.load(MODEL)
images = model.preprocess(paths)
out = model(images, layers=[-2])
print(model)
print("images", images.shape)
print("class tokens", out.cls.shape)
print("registers", out.registers.shape)
print("patches", out.patches.shape)
print("patches one block earlier", out.layers[-2].patches.shape)

# %% [markdown]
# Whole images are compared by the cosine of their class tokens.

# %%
import matplotlib.pyplot as plt

tokens = np.asarray(out.cls)
units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
cosines = units @ units.T
names = [path.stem for path in paths]
figure, axes = plt.subplots(figsize=(4.5, 4))
picture = axes.imshow(cosines, cmap="viridis", vmax=1)
axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
axes.set_yticks(range(len(names)), names)
figure.colorbar(picture, label="cosine")
plt.show()

# %% [markdown]
# The table of `embed` has the same class tokens.

# %%
row = embedded[paths[0].name]
error = np.linalg.norm(row - tokens[0]) / np.linalg.norm(tokens[0])
print(f"relative difference: {error:.1e}")
assert error < 0.02  # about 1e-2 on accelerators, where `embed` computes in bfloat16
