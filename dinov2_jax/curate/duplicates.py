"""The table of duplicates: pairs from several finders, and what they decide."""

import os
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.curate import components, hashes, image_files, search, tables
from dinov2_jax.curate import features as features_lib


def read_pairs(
    path: str | os.PathLike, names: np.ndarray, threshold: float | None
) -> search.Pairs:
    """Read pairs that another program found.

    Args:
      path: Parquet file with columns `name`, `neighbour` and `similarity`.
      names: Names of the images, [N].
      threshold: Similarity that pairs exceed; None takes all.

    Raises:
      UserError: A column is missing, or a name is not among `names`.
    """
    columns, _ = tables.read(path)
    tables.need(columns, ["name", "neighbour", "similarity"], path=path)
    tables.refuse_nulls(path, ["similarity"])
    rows = {name: row for row, name in enumerate(names)}
    ends = []
    for column in ("name", "neighbour"):
        found = [rows.get(name, -1) for name in columns[column]]
        ends.append(np.array(found, np.int64))
        if -1 in found:
            name = columns[column][found.index(-1)]
            raise errors.UserError(
                f"{path} has the image {name!r}, which the features do not have: make "
                "both from the same images"
            )
    similarity = np.asarray(columns["similarity"], np.float32)
    chosen = ends[0] != ends[1]
    if threshold is not None:
        chosen &= similarity > np.float32(threshold)
    return _unique(ends[0][chosen], ends[1][chosen], similarity[chosen], len(names))


def read_hashes(
    path: Any, features: features_lib.Features, images: image_files.ImageFiles
) -> tuple[np.ndarray, np.ndarray]:
    """Read the hashes of images, or compute and write them.

    Args:
      path: Parquet file, `pathlib.Path`.
      features: Features with the images' names.
      images: The images.

    Returns:
      Hashes, uint64 [N, 2], and numbers of pixels, int64 [N]; both are 0 for an image
      that cannot be read.

    Raises:
      UserError: The file is of other images, or none can be read.
    """
    inputs = {"images": features.images, "version": hashes.VERSION}
    if path.exists():
        columns, record = tables.read(path)
        tables.need(columns, ["name", "hash", "mirrored", "pixels"], path=path)
        columns = tables.match(features.names, columns, path=path)
        if record and record.get("inputs") != inputs:
            raise errors.UserError(
                f"{path} has hashes of images that were changed since, or of an "
                "earlier version: remove it, so that they are computed again"
            )
        found = np.stack([columns["hash"], columns["mirrored"]], axis=1)
        return found, columns["pixels"]
    found = np.zeros((len(features), 2), np.uint64)
    pixels = np.zeros(len(features), np.int64)
    rows = range(len(features))
    readable = image_files.Readable(images.hashes_and_size, rows, what="hashing")
    for row, result in readable:
        found[row], pixels[row] = result
    readable.warn(without="no hash")
    columns = {
        "name": features.names,
        "hash": found[:, 0],
        "mirrored": found[:, 1],
        "pixels": pixels,
    }
    counts = {
        "images": len(pixels),
        "unreadable": int(np.sum(pixels == 0)),
        "without structure": int(np.sum((pixels > 0) & (found[:, 0] == 0))),
    }
    record = {"step": "hashes", "inputs": inputs, "counts": counts}
    tables.write(path, columns, record)
    return found, pixels


def add_hashed(
    pairs: search.Pairs,
    features: features_lib.Features,
    image_hashes: np.ndarray,
    *,
    bits: int,
) -> tuple[search.Pairs, components.Twins]:
    """Return pairs together with those whose hashes are near, and the latter apart.

    Args:
      pairs: Pairs by features.
      features: The features, for the similarities of the further pairs.
      image_hashes: Hashes, uint64 [N, 2].
      bits: Most bits by which hashes differ.
    """
    left, right = hashes.find_pairs(image_hashes, bits=bits)
    similarity = search.similarities(features, left, right)
    both = _unique(
        np.concatenate([pairs.left, left]),
        np.concatenate([pairs.right, right]),
        np.concatenate([pairs.similarity, similarity]),
        len(features),
    )
    return both, components.Twins(hashes.twins(image_hashes), left, right)


def _unique(left, right, similarity, count: int) -> search.Pairs:
    """Return pairs in order, each once, as of the first."""
    low, high = np.minimum(left, right), np.maximum(left, right)
    keys = low.astype(np.int64) * count + high
    _, places = np.unique(keys, return_index=True)
    return search.Pairs(
        low[places].astype(np.int32),
        high[places].astype(np.int32),
        similarity[places],
    )


def order(
    features: features_lib.Features,
    images: image_files.ImageFiles | None,
    pairs: search.Pairs,
    *,
    keep: str,
    sizes: np.ndarray | None = None,
) -> np.ndarray:
    """Return all images, those that are rather kept first, [N].

    Args:
      features: The features.
      images: The images; None if they are not needed.
      pairs: The pairs; sizes of other images are not read.
      keep: "first": in the order of the rows; "largest": with more pixels first, by
        name if they have equally many.
      sizes: Numbers of pixels, [N], if they are known.
    """
    if keep == "first":
        return np.arange(len(features))
    if sizes is None:
        assert images is not None
        sizes = np.zeros(len(features), np.int64)
        rows = np.union1d(pairs.left, pairs.right)
        readable = image_files.Readable(images.size, rows, what="measuring")
        for row, size in readable:
            sizes[row] = size
        readable.warn(without="no size and are kept last")
    by_name = np.argsort(features.names, kind="stable")
    return by_name[np.argsort(-sizes[by_name], kind="stable")]


def table(
    names: np.ndarray,
    pairs: search.Pairs,
    order: np.ndarray,
    *,
    linkage: str,
    twins: components.Twins | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the columns of the table, and counts.

    Args:
      names: Names of the images, [N].
      pairs: The pairs.
      order: All images, those that are rather kept first, [N].
      linkage: "component" or "greedy", see `components`.
      twins: Pairs by hashes, which `pairs` has in part; None for none.
    """
    count = len(names)
    if linkage == "greedy":
        group = components.greedy(count, pairs.left, pairs.right, order, twins)
    else:
        group = components.connected(count, pairs.left, pairs.right)
    component = components.number(group)
    kept = components.first_of_each(component, order)
    best, similarity = components.nearest(
        names, pairs.left, pairs.right, pairs.similarity
    )
    nearest = np.where(best >= 0, names[best], "").astype(object)
    sizes = np.bincount(component[component >= 0], minlength=1)
    columns = {
        "name": names,
        "component": component,
        "kept": kept,
        "nearest": nearest,
        "similarity": similarity,
        "leak": np.full(count, "", object),
    }
    counts = {
        "images": count,
        "pairs": len(pairs),
        "components": int(component.max(initial=-1)) + 1,
        "largest": int(sizes.max()),
        "kept": int(kept.sum()),
    }
    return columns, counts
