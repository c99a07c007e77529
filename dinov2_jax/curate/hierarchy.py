"""Hierarchical k-means with resampling (Vo et al., 2024, arXiv 2405.15613).

k-means puts centroids where the rows are dense. Clusters of the centroids, and of those
again, are spread more evenly over what the rows show, so that a choice that gives each
of them the same number of images is balanced. Level t clusters the centroids of level
t - 1, the first one the rows:

1. k-means.
2. Several times: of each cluster the rows nearest to its centroid, k-means of those
   from a new start, and all rows assigned to the new centroids.

Shapes: N rows, D width, K clusters of a level.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from dinov2_jax import errors
from dinov2_jax.curate import kmeans, level_state, metrics, row_blocks

_MOST_CLUSTERS = 100_000
_ROWS_A_CLUSTER = 20
_FEWEST_CLUSTERS = 10  # of a level above the second


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done at a level.

    Attributes:
      clusters: Number of clusters.
      representatives: Number of rows of each cluster that a resampling takes.
      resamplings: Number of resamplings.
    """

    clusters: int
    representatives: int
    resamplings: int


def default_clusters(count: int) -> list[int]:
    """Return numbers of clusters by level that suit a number of rows.

    The first level has 20 rows a cluster and at most 100,000 clusters; each level above
    has a twentieth of those below, while at least 10 remain. There are two levels at
    least.

    Args:
      count: Number of rows.
    """
    found = [max(min(count // _ROWS_A_CLUSTER, _MOST_CLUSTERS), 1)]
    while found[-1] // _ROWS_A_CLUSTER >= _FEWEST_CLUSTERS:
        found.append(found[-1] // _ROWS_A_CLUSTER)
    if len(found) == 1 and found[0] > 3:
        found.append(int(found[0] ** 0.5))
    return found


def make_plans(
    count: int,
    clusters: Sequence[int],
    representatives: Sequence[int] | None,
    resamplings: Sequence[int],
) -> list[Plan]:
    """Return the plans of all levels.

    Args:
      count: Number of rows of the lowest level, N.
      clusters: Number of clusters by level, the lowest first.
      representatives: Rows of a cluster that a resampling takes, by level; None takes
        half of the mean size.
      resamplings: Number of resamplings, by level or one for all.

    Raises:
      UserError: The numbers do not fit each other.
    """
    for below, above in zip([count, *clusters], clusters):
        if above > below or (above == below and below != count):
            raise errors.UserError(
                f"--levels={_listed(clusters)}: {above:,} clusters are too many for "
                f"{below:,} below them: name fewer, the lowest level first"
            )
    sizes = [below // above for below, above in zip([count, *clusters], clusters)]
    representatives = representatives or [max(size // 2, 1) for size in sizes]
    if len(resamplings) == 1:
        resamplings = list(resamplings) * len(clusters)
    for name, values in (
        ("representatives", representatives),
        ("resamplings", resamplings),
    ):
        if len(values) != len(clusters):
            raise errors.UserError(
                f"--{name}={_listed(values)} has {len(values)} numbers, and there are "
                f"{len(clusters)} levels ({_listed(clusters)}): give one for each level"
            )
    return [Plan(*numbers) for numbers in zip(clusters, representatives, resamplings)]


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def nearest_members(
    assignment: np.ndarray, distances: np.ndarray, most: int
) -> np.ndarray:
    """Return the rows of each cluster that are nearest to its centroid.

    Args:
      assignment: Cluster of each row, int [N].
      distances: Distance of each row to its centroid, [N].
      most: Number of rows of a cluster, all if it has fewer.

    Returns:
      Indices of the rows, ascending.
    """
    order = np.lexsort((distances, assignment))  # stable: the first among equals
    grouped = assignment[order]
    place = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    return np.sort(order[place < most])


def build(
    source: row_blocks.Source,
    plans: Sequence[Plan],
    *,
    mesh: Mesh,
    metric: str,
    seed: int,
    memory: int,
    state: level_state.State,
    first: level_state.Level | None = None,
    steps: int = kmeans.STEPS,
    log: Callable[[str], None] = lambda _: None,
) -> list[level_state.Level]:
    """Cluster rows, then the centroids, level by level.

    Args:
      source: The rows.
      plans: Plans of the levels to compute.
      mesh: Devices that share the rows.
      metric: Name of the lowest level's distance in `metrics.METRICS`.
      seed: Seed of all starts.
      memory: Bytes that rows may take on the devices.
      state: What was computed before, and where results are kept.
      first: A lowest level that was made elsewhere; `plans` are those above it.
      steps: Most steps of a k-means.
      log: Function that gets a line after each k-means.

    Returns:
      The levels, the lowest first.
    """
    levels = [first] if first else []
    if first:
        metric = metrics.METRICS[metric].above
    for plan in plans:
        number = len(levels) + 1
        if (level := state.level(number)) is None:
            below = source if not levels else row_blocks.Matrix(levels[-1].centroids)
            rows = row_blocks.RowBlocks(below, mesh=mesh, memory=memory)
            found = _build_level(
                rows,
                plan,
                number,
                metric=metrics.METRICS[metric],
                seed=seed,
                steps=steps,
                state=state,
                log=log,
            )
            level = level_state.Level(found.centroids, found.assignment)
            state.save_level(number, level)
        levels.append(level)
        metric = metrics.METRICS[metric].above
    return levels


def _build_level(
    rows, plan, number, *, metric, seed, steps, state, log
) -> kmeans.Clusters:
    found, done = state.unfinished(number)
    for turn in range(done, plan.resamplings + 1):
        if found is None:
            chosen = rows
        else:
            chosen = rows.choose(
                nearest_members(found.assignment, found.distances, plan.representatives)
            )
        fitted = kmeans.fit(
            chosen,
            min(plan.clusters, len(chosen)),
            metric=metric,
            seed=(seed, number, turn),
            steps=steps,
        )
        found = fitted
        if chosen is not rows:
            found = kmeans.assign(
                rows, fitted.centroids, metric=metric, size=plan.clusters
            )
        state.save_unfinished(number, turn + 1, found)
        log(
            f"level {number}, {f'resampling {turn}' if turn else 'k-means'}: "
            f"{len(found.centroids):,} clusters of {len(rows):,} rows, mean squared "
            f"distance {found.inertia / len(rows):.4g}, {fitted.steps} steps on "
            f"{len(chosen):,} rows, {fitted.splits} empty clusters filled"
        )
    return found
