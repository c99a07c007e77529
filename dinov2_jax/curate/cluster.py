"""Divide images into clusters, clusters into larger ones, and so on.

The table has a row for each image: `name`, `path` if the features have it, and its
cluster at each level, `c1` (the smallest clusters) to `cT`. `CLUSTERS.centroids.npz`
beside it has the centroids, c1 to cT. A killed run goes on where it was, after the
same command, and ends with the same bits.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov2_jax import cli, errors, files
from dinov2_jax.curate import metrics, tables

_RESAMPLINGS = (10,)
_GIGABYTE = 10**9


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of this step.

    Args:
      parser: The parser that gets them.
    """
    add = parser.add_argument
    add(
        "--features",
        nargs="+",
        required=True,
        type=cli.path,
        help="files of `embed`, or folders of them",
    )
    add(
        "--levels",
        type=integers,
        metavar="K1,K2,...",
        help="number of clusters by level, the lowest first (default: an image in 20, "
        "at most 100,000, then one in 20 of those)",
    )
    add(
        "--representatives",
        type=integers,
        metavar="R1,R2,...",
        help="rows of each cluster, nearest to its centroid, that resampling takes "
        "(default: half of the mean size)",
    )
    add(
        "--resamplings",
        type=integers,
        default=_RESAMPLINGS,
        metavar="M1,M2,...",
        help="how often each level is resampled, or one number for all (default: 10)",
    )
    add(
        "--metric",
        choices=metrics.METRICS,
        default="l2",
        help="distance of features at unit length (the default), of features as they "
        "are, or cosine",
    )
    add("--steps", type=cli.positive, help="most steps of a k-means (default: 50)")
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of all starts (default: 0)",
    )
    add(
        "--memory",
        type=cli.positive,
        metavar="GB",
        help="memory for features, which are read again at each step if they need more "
        "(default: a quarter of the machine's or the devices')",
    )
    add(
        "--assignments",
        type=cli.path,
        metavar="TABLE",
        help="Parquet file of another program, with `name` and one column of integers: "
        "the lowest level; --levels are those above it",
    )
    add("--out", type=cli.path, required=True, help="the table to write, *.parquet")


def integers(text: str) -> list[int]:
    """Parse numbers separated by commas, for use as the type of a flag.

    Args:
      text: The text, such as "20000,1000".
    """
    try:
        found = [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        found = [-1]
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 20000,1000,100")
    return found


def run(args: argparse.Namespace) -> None:
    """Cluster the images and write the table and the centroids.

    Args:
      args: The parsed flags.

    Raises:
      UserError: The features cannot be read, or numbers do not fit them.
    """
    from dinov2_jax import sharding
    from dinov2_jax.curate import features as features_lib
    from dinov2_jax.curate import hierarchy, kmeans, level_state, row_blocks

    tables.check_out(args.out)
    features = features_lib.open_features(args.features)
    first, inputs = None, {"features": features.digest}
    if args.assignments:
        ids = _assignments(args.assignments, features.names)
        first = _first_level(features, ids, args.metric)
        inputs["assignments"] = tables.digest(args.assignments)
    count = len(first.centroids) if first else len(features)
    clusters = args.levels or hierarchy.default_clusters(count)
    for flag, numbers in (
        ("levels", clusters),
        ("representatives", args.representatives),
    ):
        if not all(numbers or ()):
            raise errors.UserError(f"--{flag} has a 0: name numbers above it")
    plans = hierarchy.make_plans(
        count, clusters, args.representatives, args.resamplings
    )
    parameters = {
        "metric": args.metric,
        "clusters": [plan.clusters for plan in plans],
        "representatives": [plan.representatives for plan in plans],
        "resamplings": [plan.resamplings for plan in plans],
        "steps": args.steps or kmeans.STEPS,
    }
    settings = {"inputs": inputs, "seed": args.seed, **parameters}
    mesh = sharding.make_mesh()
    with level_state.State(
        args.out.with_name(f"{args.out.name}.partial"), settings
    ) as state:
        levels = hierarchy.build(
            features,
            plans,
            mesh=mesh,
            metric=args.metric,
            seed=args.seed,
            memory=args.memory * _GIGABYTE
            if args.memory
            else row_blocks.default_memory(mesh),
            state=state,
            first=first,
            steps=parameters["steps"],
            log=lambda line: print(line, file=sys.stderr, flush=True),
        )
        _write(args.out, features, levels, inputs, parameters, args.seed)
        state.remove()
    sizes = ", ".join(f"{len(level.centroids):,}" for level in levels)
    print(f"wrote {len(features):,} images in clusters of {sizes} to {args.out}")


def centroids_path(table: pathlib.Path) -> pathlib.Path:
    """Return the path of the centroids of a table of clusters.

    Args:
      table: Path of the table.
    """
    return table.with_suffix(".centroids.npz")


def _write(
    out: pathlib.Path,
    features: Any,
    levels: list[Any],
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
    seed: int,
) -> None:
    columns: dict[str, Any] = {"name": features.names}
    if features.paths is not None:
        columns["path"] = features.paths
    below = np.arange(len(features), dtype=np.int32)
    for number, level in enumerate(levels, 1):
        below = level.assignment[below]
        columns[f"c{number}"] = below
    with files.open_new(centroids_path(out)) as file:
        np.savez(
            file, **{f"c{number}": x.centroids for number, x in enumerate(levels, 1)}
        )
    record = {
        "step": "cluster",
        "inputs": inputs,
        "parameters": parameters,
        "counts": {
            "images": len(features),
            "clusters": [len(level.centroids) for level in levels],
        },
        "seed": seed,
    }
    tables.write(out, columns, record)


def _assignments(path: pathlib.Path, names: np.ndarray) -> np.ndarray:
    """Return the cluster of each image by a table of another program, int [N]."""
    columns, _ = tables.read(path)
    columns = tables.match(names, columns, path=path)
    found = [
        name
        for name, values in columns.items()
        if np.issubdtype(values.dtype, np.integer)
    ]
    if len(found) != 1:
        raise errors.UserError(
            f"{path} has {len(found)} columns of integers"
            f"{' (' + ', '.join(found) + ')' if found else ''}: keep only `name` and "
            "the column of the clusters"
        )
    return columns[found[0]]


def _first_level(features: Any, ids: np.ndarray, metric: str) -> Any:
    """Return the level of given clusters, with the means of their rows."""
    from scipy import sparse

    from dinov2_jax.curate import features as features_lib
    from dinov2_jax.curate import level_state

    _, assignment = np.unique(ids, return_inverse=True)
    sizes = np.bincount(assignment)
    sums = np.zeros((len(sizes), features.dim))
    for start, rows in features.blocks(2**14):
        if metrics.METRICS[metric].unit:
            rows = features_lib.unit(rows)
        part = assignment[start : start + len(rows)]
        places = (part, np.arange(len(rows)))
        chosen = sparse.csr_array(
            (np.ones(len(rows)), places), shape=(len(sizes), len(rows))
        )
        sums += chosen @ rows.astype(np.float64)
    centroids = (sums / sizes[:, None]).astype(np.float32)
    if metrics.METRICS[metric].spherical:
        centroids = features_lib.unit(centroids)
    return level_state.Level(centroids, assignment.astype(np.int32))
