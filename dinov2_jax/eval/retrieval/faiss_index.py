"""Approximate search in large sets of features, by faiss.

The features are clustered once, and the index is kept beside them. A search looks only
into the clusters nearest to the query.

Shapes: N features, M queries, D width, K neighbours.
"""

import math
import os
import pathlib

import numpy as np

from dinov2_jax import errors
from dinov2_jax.eval.classification import nearest

_BLOCK = 65_536  # features that are added at a time
_OF_A_CLUSTER = 40  # features at least, on average; faiss warns below 39


def search(
    rows: np.ndarray, queries: np.ndarray, k: int, *, path: pathlib.Path, probes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest features by cosine similarity.

    Args:
      rows: Features of any length, [N, D].
      queries: Features of any length, [M, D].
      k: Number of neighbours K, at most N.
      path: Path of the file that holds `rows`; the index is kept beside it.
      probes: Number of clusters to look into; more where those hold too few features.

    Returns:
      Similarities float32 [M, K], the highest first, and indices into `rows`, [M, K].

    Raises:
      UserError: faiss is not installed, or the index cannot be written.
    """
    faiss = module()
    index = _kept(faiss, path, len(rows)) or _build(faiss, rows, path)
    clusters = faiss.extract_index_ivf(index)
    while True:
        clusters.nprobe = min(probes, clusters.nlist)
        similar, found = index.search(nearest.normalised(queries), k)
        if (found >= 0).all() or probes >= clusters.nlist:
            return similar, found
        probes *= 2


def module():
    """Return faiss.

    Raises:
      UserError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise errors.UserError(
            f"--faiss needs: pip install 'dinov2-jax[search]' ({error})"
        ) from error
    return faiss


def _kept(faiss, path, count):
    """Return the index beside the features, None if it is not of these."""
    kept = path.with_suffix(".faiss")
    if not kept.exists() or kept.stat().st_mtime_ns < path.stat().st_mtime_ns:
        return None
    try:
        index = faiss.read_index(str(kept), faiss.IO_FLAG_MMAP)
    except RuntimeError:  # cut off
        return None
    return index if index.ntotal == count else None


def _build(faiss, rows, path):
    """Cluster the features and write the index beside them."""
    count, width = rows.shape
    clusters = max(min(int(4 * math.sqrt(count)), count // _OF_A_CLUSTER), 1)
    index = faiss.index_factory(
        width, f"IVF{clusters},Flat", faiss.METRIC_INNER_PRODUCT
    )
    every = max(count // (256 * clusters), 1)  # faiss trains on 256 a cluster at most
    index.train(nearest.normalised(rows[::every]))
    for start in range(0, count, _BLOCK):
        index.add(nearest.normalised(rows[start : start + _BLOCK]))
    kept = path.with_suffix(".faiss")
    part = kept.with_suffix(".faiss.part")
    try:
        faiss.write_index(index, str(part))
        os.replace(part, kept)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise errors.UserError(
            f"cannot write {kept} ({' '.join(str(error).split())}): make its folder "
            "writable, or leave out --faiss"
        ) from error
    return index
