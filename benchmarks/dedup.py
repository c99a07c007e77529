"""All similar pairs by `dinov2_jax.curate` against faiss, on this machine's CPU.

    python -m benchmarks.dedup --rows=100000 --dim=384
    python -m benchmarks.dedup --rows=1000000 --queries=10000

Random features of unit length, of which one in a hundred is a near copy of another.
Ours compares each pair of rows once; faiss searches all rows for each (IndexFlatIP's
range search), so it computes every similarity twice. With --queries, both compare so
many first rows with all. Pairs must be the same, apart from those within 1e-5 of the
threshold. Times include compilation, seconds.
"""

import argparse
import dataclasses
import resource
import time

import numpy as np

from dinov2_jax.curate import search

_COPIES = 100  # one row in as many is a near copy
_NOISE = 0.3  # length of what is added to a copy: similarities of about .96
_TILE = 2**14  # queries that faiss searches at once


@dataclasses.dataclass(frozen=True)
class Rows:
    """Features in memory.

    Attributes:
      values: float32 [N, D].
    """

    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return consecutive rows."""
        return self.values[start:stop]


def make_rows(count: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Return random features of unit length with near copies, float32 [count, dim].

    Args:
      count: Number of rows.
      dim: Width of the rows.
      seed: Seed of the rows.
    """
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    copies = np.arange(0, count - 1, _COPIES)
    noise = rng.standard_normal((len(copies), dim), np.float32)
    noise *= _NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    rows[copies + 1] = rows[copies] + noise
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_faiss(
    rows: np.ndarray, threshold: float, queries: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs as numbers left * N + right, sorted, and their similarities.

    Args:
      rows: Features of unit length, [N, D].
      threshold: Similarity that pairs exceed.
      queries: Number of rows, the first ones, whose pairs are wanted.
    """
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    keys, similarity = [], []
    for start in range(0, queries, _TILE):
        part = rows[start : min(start + _TILE, queries)]
        limits, values, right = index.range_search(part, threshold)
        left = start + np.repeat(np.arange(len(part)), np.diff(limits.astype(np.int64)))
        upper = left < right
        keys.append(left[upper] * len(rows) + right[upper])
        similarity.append(values[upper])
    found = np.concatenate(keys)
    order = np.argsort(found)
    return found[order], np.concatenate(similarity)[order]


def ours(
    rows: np.ndarray, threshold: float, queries: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same by `search.find_pairs`; arguments as of `by_faiss`."""
    if queries == len(rows):
        pairs = search.find_pairs(Rows(rows), threshold=threshold)
    else:
        few = Rows(rows[:queries])
        pairs = search.find_pairs(few, threshold=threshold, others=Rows(rows))
    upper = pairs.left < pairs.right
    keys = pairs.left.astype(np.int64) * len(rows) + pairs.right
    return keys[upper], pairs.similarity[upper]


def differing(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    threshold: float,
) -> int:
    """Return how many pairs only one has, beyond rounding at the threshold.

    Args:
      first: Pairs and similarities.
      second: Those of another search.
      threshold: Similarity that pairs exceed.
    """
    wrong = 0
    for (keys, similarity), (others, _) in ((first, second), (second, first)):
        alone = ~np.isin(keys, others)
        wrong += int(np.sum(alone & (similarity > threshold + 1e-5)))
    return wrong


def main() -> None:
    """Measure and print a line for each of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, help="default: all rows")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    rows = make_rows(args.rows, args.dim)
    calls = {"jax": ours, "faiss": by_faiss}
    seconds, found = {name: [] for name in calls}, {}
    for _ in range(args.rounds):
        for name, call in calls.items():  # taking turns
            start = time.perf_counter()
            found[name] = call(rows, args.threshold, args.queries or args.rows)
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(f"{name:6} {np.median(values):8.1f} s   {len(found[name][0]):,} pairs")
    wrong = differing(found["jax"], found["faiss"], args.threshold)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{wrong} pairs differ; peak memory of both together {peak:.1f} GiB")


if __name__ == "__main__":
    main()
