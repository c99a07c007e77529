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
# # Classify images: linear probe and fine-tuning
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/dinov2-jax/dinov2_jax/blob/main/notebooks/classification.ipynb)
#
# Measure frozen features with nearest neighbours and logistic regression, fine-tune the
# whole model, and classify new images with it.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("dinov2_jax") is None:  # as on Colab
    package = "git+https://github.com/dinov2-jax/dinov2_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# ## Settings
# Without changes this runs offline on scikit-learn's handwritten digits, with a small
# model that is trained here on photographs in a minute or two. It has never seen
# digits. For your data set name two folders with one sub-folder per class, and released
# weights.

# %%
MODEL = ""  # such as "dinov2_vits14"; empty: train a small model here
TRAIN, TEST = "", ""  # folders with a sub-folder for each class; empty: digits
SIZE = 48  # of the images, px; 224 for released weights
STEPS = 300  # of fine-tuning; 2000 for released weights
LEARNING_RATE = 2e-3  # 1e-4 for released weights
AUGMENTATION = "none"  # "crops" for photographs; mirrored digits are no digits

# %%
import pathlib

from dinov2_jax.eval.demo import labelled_images

if not MODEL:
    MODEL = "runs/quickstart"
    # !dinov2-jax train --config=quickstart --config.train.steps=100 --workdir={MODEL}
if not TRAIN:
    TRAIN, TEST = "runs/digits/train", "runs/digits/val"
    labelled_images.write_digits(pathlib.Path("runs/digits"))
DATA = f'--train-path="{TRAIN}" --val-path="{TEST}" --resize={SIZE} --size={SIZE}'

# %% [markdown]
# ## Nearest neighbours
# No training: the nearest training images vote. Each evaluation prints its protocol
# with the numbers, and writes both to `results.json` and a page, `report.html`.

# %%
# !dinov2-jax evaluate knn --model={MODEL} {DATA} --ks 10 20 --out=runs/knn

# %% [markdown]
# ## Linear probe
# Logistic regression on frozen class tokens, with the regularisation chosen on a tenth
# of the training images. `evaluate linear` is the reference's protocol with 52
# classifiers instead.

# %%
# !dinov2-jax evaluate logreg --model={MODEL} {DATA} --cs 1e-2 1e-1 1 10 100 \
#     --out=runs/logreg

# %% [markdown]
# ## Fine-tuning
# All weights are trained together with a linear head. `--last-blocks=2` trains less,
# and `--lora-rank=8` changes the attention only.

# %%
# !dinov2-jax evaluate finetune --model={MODEL} {DATA} --out=runs/finetune \
#     --augmentation={AUGMENTATION} --mixup=0 --cutmix=0 \
#     --steps={STEPS} --lr={LEARNING_RATE} --layerwise-decay=1

# %% [markdown]
# ## Compare

# %%
import json

import matplotlib.pyplot as plt


def result(task, number):
    results = json.loads(pathlib.Path(f"runs/{task}/results.json").read_text())
    return results["numbers"][number]


classes = len(list(pathlib.Path(TRAIN).iterdir()))
accuracies = {
    "chance": 1 / classes,
    "k-NN, frozen": result("knn", "knn/top1_k20"),
    "logistic regression, frozen": result("logreg", "logreg/accuracy"),
    "fine-tuned": result("finetune", "finetune/top1"),
}
figure, axes = plt.subplots(figsize=(6, 2.2))
bars = axes.barh(list(accuracies), list(accuracies.values()))
axes.bar_label(bars, fmt="{:.1%}", padding=3)
axes.invert_yaxis()
axes.set(xlim=(0, 1.1), xlabel="accuracy on test images")
plt.show()
assert min(list(accuracies.values())[1:]) > 2 / classes

# %% [markdown]
# ## Classify new images
# Fine-tuning wrote a folder for transformers' `Dinov2ForImageClassification`, and a
# head for `predict`.

# %%
import shlex

chosen = sorted(pathlib.Path(TEST).rglob("*.png"))[::100]
images = shlex.join(map(str, chosen))
# !dinov2-jax evaluate predict --model=runs/finetune/huggingface \
#     --head=runs/finetune/head.pth --images {images} --out=runs/classified

# %%
from PIL import Image

predictions = json.loads(pathlib.Path("runs/classified/predictions.json").read_text())
figure, axes = plt.subplots(1, len(chosen), figsize=(1.5 * len(chosen), 2))
for axis, found in zip(axes, predictions):
    best = found["classes"][0]
    axis.imshow(Image.open(found["image"]))
    axis.set_title(f"{best['name']}: {best['probability']:.0%}")
    axis.axis("off")
plt.show()
