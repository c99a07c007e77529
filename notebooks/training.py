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
# # Train on a folder of images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/dinov2-jax/dinov2_jax/blob/main/notebooks/training.ipynb)
#
# Pretrain a small ViT on a folder, without labels; follow the run, continue it, and
# look at what it learned.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("dinov2_jax") is None:  # as on Colab
    package = "git+https://github.com/dinov2-jax/dinov2_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# ## Settings
# Without changes this trains for a minute or two on photographs that come with
# scikit-image. A useful model needs thousands of images, an accelerator, and the config
# `vits` or the one that `dinov2-jax recipe` writes for your images and your device.

# %%
IMAGES = ""  # a folder of your images; empty: parts of photographs of scikit-image
HELD_OUT = ""  # a folder of other images, to measure with; empty: two more photographs
CONFIG = "quickstart"  # "vits" is ViT-S/14
STEPS = 80
WORKDIR = "runs/my_images"

# %%
import pathlib

from PIL import Image

from dinov2_jax.data.sources import photos


def write(images, folder):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(f"{folder}/{index:04}.png")


if not IMAGES:
    IMAGES = "runs/parts"
    parts = photos.PhotosSource("train")
    write((parts.open(index).pixels() for index in range(len(parts))), IMAGES)
if not HELD_OUT:
    HELD_OUT = "runs/unseen"
    write(photos.load_unseen(), HELD_OUT)

# %% [markdown]
# ## Check the images
# `data scan` counts sizes and formats, and names damaged files and duplicates.

# %%
# !dinov2-jax data scan "{IMAGES}"

# %% [markdown]
# ## Train
# Any field of a config is a flag. The accuracy of matching patches between crops of
# held-out images needs no labels; it is measured at the end, and with the same ViT
# untrained.

# %%
# !dinov2-jax train --config={CONFIG} --workdir={WORKDIR} \
#     --config.data.source=folder --config.data.path="{IMAGES}" \
#     --config.train.steps={STEPS} --config.optim.warmup_steps={STEPS // 10} \
#     --config.evaluation.tasks="('matching',)" \
#     --config.evaluation.val_path="{HELD_OUT}"

# %% [markdown]
# ## Look at the run
# `status` works from another terminal too, while the run goes on. If it is stopped, the
# same command continues it from its last checkpoint.

# %%
# !dinov2-jax status {WORKDIR}

# %% [markdown]
# The folder of the run has a line of `metrics.jsonl` for each logged step. The total
# loss starts near 1.5 ln K for K prototypes, 8.3 for the 256 of the quickstart, plus
# KoLeo.

# %%
import json

import matplotlib.pyplot as plt

with open(f"{WORKDIR}/metrics.jsonl") as file:
    rows = [json.loads(line) for line in file]
losses = [row for row in rows if "loss/total" in row]
steps = [row["step"] for row in losses]
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].plot(steps, [row["loss/total"] for row in losses])
axes[0].set(title="total loss", xlabel="step")
for name in ("dino_local", "dino_global", "ibot", "koleo"):
    axes[1].plot(steps, [row[f"loss/{name}"] for row in losses], label=name)
axes[1].set(title="its parts", xlabel="step")
axes[1].legend()
plt.show()

# %% [markdown]
# What the patch features of held-out images distinguish, trained and untrained:

# %%
matching = [row for row in rows if "matching/accuracy" in row][-1]
for name in ("accuracy", "accuracy_random_init", "chance"):
    print(f"matching/{name:21} {matching[f'matching/{name}']:.3f}")
assert matching["matching/accuracy"] > 1.2 * matching["matching/chance"]
Image.open(f"{WORKDIR}/pca.png")

# %% [markdown]
# ## Use the weights
# Everything that takes a model takes the folder of a run.

# %%
import dinov2_jax

model = dinov2_jax.load(WORKDIR)
print(model)
first = min(pathlib.Path(HELD_OUT).iterdir())
print(model(model.preprocess(first)).cls.shape)
