"""Features and clusters of images that are empty files, for the steps of curation."""

import csv
import pathlib
import shlex

import numpy as np
import pyarrow
from pyarrow import parquet

from dinov2_jax.curate import __main__ as program
from dinov2_jax.curate import tables

COUNT, DIM = 200, 8
NAMES = [f"{i}.jpg" for i in range(COUNT)]


def curate(line):
    """Run the program on a command line and return its exit code."""
    return program.main(shlex.split(line))


def write_features(path, rows, names, paths=None):
    columns = {
        "name": pyarrow.array(names),
        "features": pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(rows.ravel()), rows.shape[1]
        ),
    }
    if paths is not None:
        columns["path"] = pyarrow.array(paths, pyarrow.binary())
    parquet.write_table(pyarrow.table(columns), path)


def manifest(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def rows():
    """Rows around five directions, the first of which has half of them."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((5, DIM))
    label = np.minimum(rng.geometric(0.5, COUNT) - 1, 4)
    made = centres[label] + 0.1 * rng.standard_normal((COUNT, DIM))
    return made.astype(np.float32)


def write(folder: pathlib.Path):
    """Write images and pool.parquet into a folder; return the rows."""
    for name in NAMES:
        (folder / name).touch()
    paths = [bytes(folder / name) for name in NAMES]
    write_features(folder / "pool.parquet", rows(), NAMES, paths)
    return rows()


def write_clusters(folder: pathlib.Path):
    """Write clusters.parquet and centroids, from directions drawn at random."""
    x = rows()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    c1 = (unit @ unit[:15].T).argmax(1).astype(np.int32)
    above = (np.arange(15) % 5).astype(np.int32)
    columns = {"name": NAMES, "path": [bytes(folder / name) for name in NAMES]}
    tables.write(folder / "clusters.parquet", columns | {"c1": c1, "c2": above[c1]}, {})
    np.savez(folder / "clusters.centroids.npz", c1=unit[:15])
    return c1, above[c1]


def hierarchy(count=500, seed=0):
    """Names and a hierarchy of three levels with clusters of very different sizes."""
    rng = np.random.default_rng(seed)
    c1 = (30 * rng.random(count) ** 3).astype(np.int32)
    above = rng.integers(0, 8, 30).astype(np.int32)
    top = rng.integers(0, 3, 8).astype(np.int32)
    names = np.array([f"{i % 7}/ü{i}.jpg" for i in range(count)], object)
    return names, [c1, above[c1], top[above[c1]]]
