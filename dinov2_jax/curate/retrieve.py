"""Choose the images of a pool that are close to images of your own, the queries.

By sample (for many queries): the nearest images of each query, by cosine. By cluster
(for few): of each cluster of the pool that enough queries fall into, images at random.
The table has a row for each chosen image, for `sample --only` (DINOv2, section 3 and
appendix A.4).
"""

import argparse
from typing import Any

import numpy as np

from dinov2_jax import cli, errors
from dinov2_jax.curate import keyed_hash, metrics, tables

_POOL_ROWS = 2**18  # of the pool that are searched at a time
_MODE_OF_FLAG = {
    "per_query": "sample",
    "clusters": "cluster",
    "per_cluster": "cluster",
    "min_hits": "cluster",
}
_DEFAULTS = {"per_query": 4, "per_cluster": 10_000, "min_hits": 4}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of this step.

    Args:
      parser: The parser that gets them.
    """
    add = parser.add_argument
    add(
        "--features",
        nargs="+",
        type=cli.path,
        required=True,
        help="the pool: files of `embed`, or folders of them",
    )
    add(
        "--queries",
        nargs="+",
        type=cli.path,
        required=True,
        help="features of your own images, made with the same model",
    )
    add("--mode", choices=("sample", "cluster"), default="sample")
    add(
        "--per-query",
        type=cli.positive,
        help="by sample: images of the pool for each query (default: 4)",
    )
    add(
        "--clusters",
        type=cli.path,
        help="by cluster: table of `cluster` of the pool, whose c1 is used",
    )
    add(
        "--per-cluster",
        type=cli.positive,
        help="by cluster: most images of a cluster (default: 10,000)",
    )
    add(
        "--min-hits",
        type=cli.positive,
        help="by cluster: fewest queries that a cluster is taken for (default: 4)",
    )
    add(
        "--max",
        type=cli.positive,
        default=1_000_000,
        help="most images, a random choice of those found (default: 1,000,000)",
    )
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of the choice (default: 0)",
    )
    add("--out", type=cli.path, required=True, help="the table to write, *.parquet")


def run(args: argparse.Namespace) -> None:
    """Retrieve images and write the table.

    Args:
      args: The parsed flags.

    Raises:
      UserError: Features cannot be read or compared, or nothing is found.
    """
    from dinov2_jax.curate import features as features_lib

    tables.check_out(args.out)
    _check_mode(args)
    pool = features_lib.open_features(args.features)
    queries = features_lib.open_features(args.queries)
    features_lib.refuse_others(pool, queries)
    inputs = {"features": pool.digest, "queries": queries.digest}
    if args.mode == "sample":
        rows, columns, asked = _by_sample(pool, queries, args.per_query)
    else:
        inputs["clusters"] = tables.digest(args.clusters)
        rows, columns, asked = _by_cluster(args, pool, queries)
    found = len(rows)
    if found > args.max:
        hashes = keyed_hash.hash64(args.seed, pool.names[rows])
        kept = np.sort(np.argsort(hashes, kind="stable")[: args.max])
        rows = rows[kept]
        columns = {name: values[kept] for name, values in columns.items()}
    table: dict[str, Any] = {"name": pool.names[rows]}
    if pool.paths is not None:
        table["path"] = [pool.paths[row] for row in rows]
    counts = {
        "pool": len(pool),
        "queries": len(queries),
        "asked": asked,
        "found": found,
        "kept": len(rows),
    }
    record = {
        "step": "retrieve",
        "inputs": inputs,
        "parameters": {
            "mode": args.mode,
            "per_query": args.per_query,
            "per_cluster": args.per_cluster,
            "min_hits": args.min_hits,
            "max": args.max,
        },
        "counts": counts,
        "seed": args.seed,
    }
    tables.write(args.out, table | columns, record)
    print(
        f"{len(queries):,} queries asked for {asked:,} images and found {found:,} "
        f"different ones ({found / asked:.1%}) of {len(pool):,}"
    )
    print(f"wrote {len(rows):,} to {args.out}")


def _check_mode(args: argparse.Namespace) -> None:
    """Refuse flags of the other mode, and set those that are missing."""
    if args.mode == "cluster" and not args.clusters:
        raise errors.UserError(
            "--mode=cluster needs --clusters: make it with dinov2-jax curate cluster"
        )
    for flag, mode in _MODE_OF_FLAG.items():
        value = getattr(args, flag)
        if value is not None and args.mode != mode:
            given = f"--{flag.replace('_', '-')}={value}"
            raise errors.UserError(
                f"{given} is not used by --mode={args.mode}: add --mode={mode}, or "
                "leave it out"
            )
    for flag, default in _DEFAULTS.items():
        if getattr(args, flag) is None:
            setattr(args, flag, default)


def nearest(pool: Any, queries: np.ndarray, count: int) -> tuple[np.ndarray, Any]:
    """Find the nearest images of a pool by cosine, in parts of the pool.

    Args:
      pool: Features of the pool.
      queries: Features of the queries, [M, D].
      count: Number of images for each query, at most those of the pool.

    Returns:
      Similarities, float32 [M, count], the highest first, and rows of the pool; of
      equals the first row.
    """
    from dinov2_jax.eval.classification import nearest as nearest_lib

    similar = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start, part in pool.blocks(_POOL_ROWS):
        bank = nearest_lib.Bank(part)
        found = list(bank.search(queries, min(count, len(part))))
        similar = np.hstack([similar, np.concatenate([f[1] for f in found])])
        rows = np.hstack([rows, start + np.concatenate([f[2] for f in found])])
        order = np.argsort(-similar, axis=1, kind="stable")[:, :count]
        similar = np.take_along_axis(similar, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
    return similar, rows


def _by_sample(pool, queries, per_query: int):
    """Return rows of the pool, columns about them, and how many were asked for."""
    count = min(per_query, len(pool))
    similar, found = nearest(pool, queries.matrix(), count)
    rows, hits = np.unique(found, return_counts=True)
    best = np.full(len(pool), -np.inf, np.float32)
    np.maximum.at(best, found.ravel(), similar.ravel())
    columns = {"queries": hits.astype(np.int32), "similarity": best[rows]}
    return rows, columns, found.size


def _by_cluster(args, pool, queries):
    """Return rows of the pool, columns about them, and how many were asked for."""
    from dinov2_jax import sharding
    from dinov2_jax.curate import cluster, kmeans, row_blocks

    columns, record = tables.read(args.clusters)
    tables.need(columns, ["name", "c1"], path=args.clusters)
    tables.refuse_unclustered(args.clusters, ["c1"])
    if record.get("inputs", {}).get("features", pool.digest) != pool.digest:
        raise errors.UserError(
            f"{args.clusters} was made of other features than --features: name those, "
            "or cluster again"
        )
    clusters = tables.match(pool.names, columns, path=args.clusters)["c1"]
    metric = metrics.METRICS[record.get("parameters", {}).get("metric", "l2")]
    try:
        centroids = np.load(cluster.centroids_path(args.clusters))["c1"]
    except (OSError, ValueError, KeyError) as error:
        raise errors.UserError(
            f"{cluster.centroids_path(args.clusters)} cannot be read ({error}): keep "
            "it beside --clusters"
        ) from error
    mesh = sharding.make_mesh()
    rows = row_blocks.RowBlocks(
        queries, mesh=mesh, memory=row_blocks.default_memory(mesh)
    )
    found = kmeans.nearest(rows, centroids, metric=metric)
    hits = np.bincount(found, minlength=len(centroids))
    wanted = np.flatnonzero(hits >= args.min_hits)
    if not len(wanted):
        raise errors.UserError(
            f"no cluster has {args.min_hits} queries, the most is {hits.max()}: use a "
            "smaller --min-hits, or fewer and larger clusters"
        )
    members = np.flatnonzero(np.isin(clusters, wanted))
    hashes = keyed_hash.hash64(args.seed, pool.names[members])
    order = np.lexsort((hashes, clusters[members]))
    grouped = clusters[members][order]
    place = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    chosen = np.sort(members[order[place < args.per_cluster]])
    about = {
        "cluster": clusters[chosen].astype(np.int32),
        "queries": hits[clusters[chosen]].astype(np.int32),
    }
    return chosen, about, args.per_cluster * len(wanted)
