"""k-means of `dinov2_jax.curate` against faiss and scikit-learn, on this machine's CPU.

    python -m benchmarks.kmeans --rows=100000 --dim=128 --clusters=500
    python -m benchmarks.kmeans --rows=1000000 --dim=384 --steps=10 --rounds=1
    python -m benchmarks.kmeans --equal --peers faiss

Random features of unit length around 2,000 directions. All start by their own defaults
and make the same number of Lloyd's steps, except that ours and scikit-learn's stop
when a step gains little. With `--equal`, each makes the fewest steps that reach the
inertia of the worst of them. Compilation is left out.
"""

import argparse
import bisect
import time

import numpy as np
from sklearn import cluster

from dinov2_jax import sharding
from dinov2_jax.curate import kmeans, metrics, row_blocks

_MODES = 2000


def make_rows(count: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Return random features of unit length, float32 [count, dim].

    Args:
      count: Number of rows.
      dim: Width of the rows.
      seed: Seed of the rows.
    """
    rng = np.random.default_rng(seed)
    modes = rng.standard_normal((_MODES, dim), np.float32)
    rows = modes[rng.integers(0, _MODES, count)]
    rows += 0.8 * rng.standard_normal((count, dim), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Return the mean squared distance to the nearest centroid.

    Args:
      rows: [N, D].
      centroids: [K, D].
    """
    bias = (centroids**2).sum(axis=1)
    total = 0.0
    for part in np.array_split(rows, max(len(rows) // 10_000, 1)):
        nearest = (bias - 2 * part @ centroids.T).min(axis=1)
        total += float((nearest + (part**2).sum(axis=1)).sum(dtype=np.float64))
    return total / len(rows)


def contestants(rows: np.ndarray, clusters: int):
    """Return functions of (seed, most steps) that return centroids, by name.

    Args:
      rows: [N, D].
      clusters: Number of clusters.
    """
    import faiss

    blocks = row_blocks.RowBlocks(
        row_blocks.Matrix(rows), mesh=sharding.make_mesh(), memory=2**40
    )

    def ours(seed, steps):
        metric = metrics.METRICS["l2-raw"]
        found = kmeans.fit(blocks, clusters, metric=metric, seed=seed, steps=steps)
        return found.centroids

    def of_faiss(seed, steps):
        peer = faiss.Kmeans(
            rows.shape[1],
            clusters,
            niter=steps,
            seed=seed + 1,
            max_points_per_centroid=len(rows),
        )
        peer.train(rows)
        return peer.centroids

    def of_scikit_learn(seed, steps):
        peer = cluster.KMeans(clusters, n_init=1, max_iter=steps, random_state=seed)
        return peer.fit(rows).cluster_centers_

    return {"jax": ours, "faiss": of_faiss, "scikit-learn": of_scikit_learn}


def equal_steps(rows: np.ndarray, calls: dict, seed: int, most: int) -> dict[str, int]:
    """Return the fewest steps of each that reach the inertia of the worst of them.

    Args:
      rows: [N, D].
      calls: Functions of (seed, most steps) that return centroids, by name.
      seed: Seed of the starts.
      most: Steps after which they are compared.
    """
    target = max(inertia(rows, call(seed, most)) for call in calls.values())
    return {
        name: bisect.bisect_left(
            range(1, most),
            -target,
            key=lambda steps, call=call: -inertia(rows, call(seed, steps)),
        )
        + 1
        for name, call in calls.items()
    }


def main() -> None:
    """Measure and print a line for each contestant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", nargs="*", default=["faiss", "scikit-learn"])
    parser.add_argument("--equal", action="store_true", help="compare at equal inertia")
    args = parser.parse_args()
    rows = make_rows(args.rows, args.dim)
    calls = contestants(rows, args.clusters)
    calls = {name: calls[name] for name in ("jax", *args.peers)}
    calls["jax"](0, 1)  # compiles
    found = {name: [] for name in calls}
    for seed in range(args.rounds):
        steps = dict.fromkeys(calls, args.steps)
        if args.equal:
            steps = equal_steps(rows, calls, seed, args.steps)
        for name, call in calls.items():  # taking turns
            start = time.perf_counter()
            centroids = call(seed, steps[name])
            seconds = time.perf_counter() - start
            found[name].append((seconds, inertia(rows, centroids), steps[name]))
    for name, values in found.items():
        seconds, values, steps = np.median(values, axis=0)
        print(
            f"{name:14} {seconds:8.2f} s   mean squared distance {values:.5f}   "
            f"{steps:g} steps"
        )


if __name__ == "__main__":
    main()
