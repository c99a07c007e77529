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
# # Search a collection of works of art or photographs
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/dinov2-jax/dinov2_jax/blob/main/notebooks/retrieval.ipynb)
#
# Index a folder, find the images most similar to a given one, and measure retrieval.

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
# or two. The collection are parts of 16 photographs that come with scikit-image and
# scikit-learn, the queries other parts: the task is to find the same photograph.
#
# `evaluate retrieval` also has the benchmarks of the paper: Oxford and Paris,
# AmsterTime, and the Met's works of art (`--benchmark=met`).

# %%
MODEL = ""  # such as "dinov2_vits14"; empty: train a small model here
COLLECTION = ""  # a folder with a sub-folder for each work; empty: photographs
QUERIES = ""  # another, with sub-folders of the same names
SIZE = 84  # of the images, px; 224 for released weights
K = 6  # images to find

# %%
import pathlib

import numpy as np
from PIL import Image

from dinov2_jax.data.sources import photos


def write(folder, count, seed):
    rng = np.random.default_rng(seed)
    for name, pixels in zip(photos.photograph_names(), photos.load_photographs()):
        pathlib.Path(folder, name).mkdir(parents=True, exist_ok=True)
        for view in range(count):
            image = Image.fromarray(pixels)
            side = int(rng.uniform(0.5, 0.8) * min(image.size))
            left, top = (int(rng.integers(length - side)) for length in image.size)
            part = image.crop((left, top, left + side, top + side)).resize((168, 168))
            part.save(f"{folder}/{name}/{view}.jpg")


if not MODEL:
    MODEL = "runs/quickstart"
    # !dinov2-jax train --config=quickstart --config.train.steps=100 --workdir={MODEL}
if not COLLECTION:
    COLLECTION, QUERIES = "runs/collection", "runs/queries"
    write(COLLECTION, count=8, seed=0)
    write(QUERIES, count=2, seed=1)

# %% [markdown]
# ## Index and search
# `embed` computes a class token for each image; `search` ranks by cosine. The search is
# exact; for millions of images `--faiss` looks only into the nearest clusters.

# %%
# !dinov2-jax embed "{COLLECTION}" --model={MODEL} --size={SIZE} \
#     --out=runs/index.npy --overwrite

# %%
import shlex

queries = sorted(pathlib.Path(QUERIES).rglob("*.*"))
chosen = shlex.join(map(str, queries[:: len(queries) // 5][:5]))
# !dinov2-jax search runs/index.npy {chosen} --model={MODEL} --k={K} \
#     --folder="{COLLECTION}" --out=runs/found.png
Image.open("runs/found.png")

# %% [markdown]
# ## Measure
# Images are relevant to a query if their sub-folders have the same name.

# %%
# !dinov2-jax evaluate retrieval --model={MODEL} --database="{COLLECTION}" \
#     --queries="{QUERIES}" --resize={SIZE} --size={SIZE} --out=runs/retrieval

# %%
import json

results = json.loads(pathlib.Path("runs/retrieval/results.json").read_text())
found = results["numbers"]["retrieval/found_in_1"]
works = len(list(pathlib.Path(COLLECTION).iterdir()))
print(f"the nearest image is right for {found:.0%} of the queries")
print(f"chance is about {1 / works:.0%}")
assert found > 2 / works

# %% [markdown]
# ## The same in Python
# With features of length 1 a dot product is the cosine.

# %%
import dinov2_jax

model = dinov2_jax.load(MODEL)
index = np.load("runs/index.npy")
index /= np.linalg.norm(index, axis=1, keepdims=True)
names = json.loads(pathlib.Path("runs/index.npy.json").read_text())["names"]
query = np.asarray(model(model.preprocess(queries[0], size=SIZE)).cls)[0]
cosines = index @ (query / np.linalg.norm(query))
for row in np.argsort(-cosines)[:K]:
    print(f"{cosines[row]:.3f} {names[row]}")
