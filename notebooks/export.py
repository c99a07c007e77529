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
# # Export to PyTorch and ONNX, and compare
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/dinov2-jax/dinov2_jax/blob/main/notebooks/export.ipynb)
#
# Write weights for transformers, torch.hub and ONNX, load them there, and compare the
# features.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("dinov2_jax") is None:  # as on Colab
    package = "dinov2-jax[export] @ git+https://github.com/dinov2-jax/dinov2_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# ## Settings
# Without changes this runs offline, with a small model that is trained here in a minute
# or two. Any weights will do: those of your run, or released ones.

# %%
MODEL = ""  # such as "dinov2_vits14" or "runs/mine"; empty: train a small model here
SIZE = 48  # of the images, px; 224 for released weights

# %%
if not MODEL:
    MODEL = "runs/quickstart"
    # !dinov2-jax train --config=quickstart --config.train.steps=100 --workdir={MODEL}

# %% [markdown]
# ## Export
# Each export is loaded with the library that it is for and compared on two photographs
# before it is kept. A report beside it has the error, the versions and SHA-256 sums.
#
# transformers interpolates position embeddings otherwise than the reference; a warning
# says so where it matters. `--size` stores them at the size that you will use.

# %%
# !dinov2-jax convert {MODEL} runs/huggingface --to huggingface \
#     --size={SIZE}x{SIZE} --overwrite

# %%
# !dinov2-jax convert {MODEL} runs/backbone.pth --to torch-hub --overwrite

# %% [markdown]
# An ONNX graph takes one image size and any batch.

# %%
# !dinov2-jax convert {MODEL} runs/backbone.onnx --to onnx \
#     --size={SIZE}x{SIZE} --overwrite

# %% [markdown]
# ## Compare by hand
# First the features that this package computes.

# %%
import numpy as np

import dinov2_jax
from dinov2_jax.data.sources import photos

model = dinov2_jax.load(MODEL)
images = model.preprocess(photos.load_unseen(), size=SIZE)  # [2, H, W, 3]
ours = np.asarray(model(images).cls)
channels_first = images.transpose(0, 3, 1, 2)  # as PyTorch and ONNX want them
errors = {}


def relative_error(theirs):
    return np.linalg.norm(theirs - ours) / np.linalg.norm(ours)


print(model)

# %% [markdown]
# transformers:

# %%
import torch
import transformers

theirs = transformers.AutoModel.from_pretrained("runs/huggingface").eval()
with torch.no_grad():
    output = theirs(torch.from_numpy(channels_first))
errors["transformers"] = relative_error(output.last_hidden_state[:, 0].numpy())
print(type(theirs).__name__)

# %% [markdown]
# The file for torch.hub loads into the reference's own models:
# `torch.hub.load("facebookresearch/dinov2", "dinov2_vits14", pretrained=False)`, then
# `load_state_dict(torch.load("backbone.pth"), strict=True)`. Here it is read back.

# %%
state = torch.load("runs/backbone.pth", weights_only=True)
print(len(state), "tensors, such as", *list(state)[:4])
errors["torch.hub, read back"] = relative_error(
    np.asarray(dinov2_jax.load("runs/backbone.pth")(images).cls)
)

# %% [markdown]
# ONNX:

# %%
import onnxruntime

session = onnxruntime.InferenceSession("runs/backbone.onnx")
(cls,) = session.run(["cls"], {"images": channels_first})
errors["onnxruntime"] = relative_error(cls)

# %%
for name, error in errors.items():
    print(f"{name:20} relative error of the class tokens {error:.1e}")
assert max(errors.values()) < 1e-3
