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
# # Distil a smaller model
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/dinov2-jax/dinov2_jax/blob/main/notebooks/distillation.ipynb)
#
# Train a smaller ViT to give what a larger, frozen one gives, and compare both.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("dinov2_jax") is None:  # as on Colab
    package = "git+https://github.com/dinov2-jax/dinov2_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# ## Settings
# The released DINOv2 S, B and L were made in this way from ViT-g. Without changes a
# small teacher, 128 wide, is trained here in a minute or two on photographs that come
# with scikit-image; its student is 32 wide.

# %%
TEACHER = ""  # such as "dinov2_vitb14"; empty: train a small teacher here
IMAGES = ""  # a folder of your images; empty: photographs of scikit-image
CONFIG = "quickstart"  # "distill" for ViT-S/14, on an accelerator
STUDENT = "--config.model.embed_dim=32"  # "" with CONFIG = "distill"
STEPS = 300
WORKDIR = "runs/student"

# %%
if not TEACHER:
    TEACHER = "runs/quickstart"
    # !dinov2-jax train --config=quickstart --config.train.steps=100 --workdir={TEACHER}
DATA = ""
if IMAGES:
    DATA = f'--config.data.source=folder --config.data.path="{IMAGES}"'

# %% [markdown]
# ## Distil
# `objective=features` regresses the teacher's class token and patches, which works with
# any teacher. A teacher with its projection heads, such as a run of this project, can
# also be distilled through its prototypes, as in the paper (`objective=prototypes`).

# %%
# !dinov2-jax train --config={CONFIG} --workdir={WORKDIR} {STUDENT} {DATA} \
#     --config.distill.source={TEACHER} --config.distill.objective=features \
#     --config.crops.local_crops_number=0 --config.ibot.mask_sample_probability=0 \
#     --config.train.steps={STEPS} --config.optim.warmup_steps={STEPS // 10}

# %%
import json
import pathlib

import matplotlib.pyplot as plt

lines = pathlib.Path(WORKDIR, "metrics.jsonl").read_text().splitlines()
rows = [json.loads(line) for line in lines]
losses = [row for row in rows if "loss/total" in row]
figure, axes = plt.subplots(figsize=(5, 3))
for name in losses[0]:
    if name.startswith("loss/"):
        steps = [row["step"] for row in losses]
        axes.plot(steps, [row[name] for row in losses], label=name)
axes.set(xlabel="step")
axes.legend()
plt.show()
assert losses[-1]["loss/total"] < losses[0]["loss/total"]

# %% [markdown]
# ## Compare
# Student and teacher on photographs that neither was trained on. A student may have
# another width than its teacher, so its features are not compared one by one, but by
# the similarities that they give between all patches: 1 means the same geometry.

# %%
import numpy as np

import dinov2_jax
from dinov2_jax.data.sources import photos

teacher, student = dinov2_jax.load(TEACHER), dinov2_jax.load(WORKDIR)
print("teacher", teacher)
print("student", student)


def similarities(patches):
    vectors = np.asarray(patches).reshape(-1, patches.shape[-1])
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (units @ units.T)[np.triu_indices(len(units), 1)]


def images_for(model):
    return model.preprocess(photos.load_unseen(), size=12 * model.config.patch_size)


wanted = similarities(teacher(images_for(teacher)).patches)
found = similarities(student(images_for(student)).patches)
means = images_for(teacher).reshape(2, 12, teacher.config.patch_size, 12, -1, 3)
colours = similarities(means.mean(axis=(2, 4)))
agreement = np.corrcoef(wanted, found)[0, 1]
print(f"correlation with the teacher: student {agreement:.3f}")
print(f"mean colour of each patch: {np.corrcoef(wanted, colours)[0, 1]:.3f}")
assert agreement > np.corrcoef(wanted, colours)[0, 1]
