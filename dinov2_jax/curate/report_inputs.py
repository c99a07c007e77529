"""What the report reads: features, and the tables of the steps that were made of them.

Shapes: N images.
"""

import argparse
import collections
import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.curate import contact_sheets, tables
from dinov2_jax.curate import features as features_lib


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the steps wrote, with tables in the order of the features.

    Attributes:
      features: Features of all images.
      pictures: Their pictures.
      dups: Columns of dedup, or None.
      levels: Clusters of each level from the lowest, int [N]; empty without clusters.
      times: How often each image is in the manifest, int [N], or None.
      records: Records of the tables by step.
      seed: Seed of the samples.
    """

    features: features_lib.Features
    pictures: contact_sheets.Pictures
    dups: dict[str, np.ndarray] | None
    levels: list[np.ndarray]
    times: np.ndarray | None
    records: dict[str, dict[str, Any]]
    seed: int


def read(args: argparse.Namespace) -> Inputs:
    """Return what the flags of the report name.

    Args:
      args: Values of the flags.

    Raises:
      UserError: A file cannot be read, or is of other images.
    """
    features = features_lib.open_features(args.features)
    names, records = features.names, {}
    dups, levels, times = None, [], None
    if args.dups:
        columns, records["dedup"] = tables.read(args.dups)
        tables.need(columns, ["name", "component", "kept"], path=args.dups)
        dups = _dups(columns, names, args.dups)
    if args.clusters:
        columns, records["cluster"] = tables.read(args.clusters)
        tables.need(columns, ["name", "c1"], path=args.clusters)
        levels = _levels(columns, names, args.clusters)
    if args.manifest:
        times = _times(args.manifest, names)
    pictures = contact_sheets.Pictures(features)
    return Inputs(features, pictures, dups, levels, times, records, args.seed)


def _rows(columns, names, path) -> np.ndarray:
    """Return the row of the features for each row of a table, int64."""
    rows = {name: row for row, name in enumerate(names)}
    at = np.array([rows.get(name, -1) for name in columns["name"]], np.int64)
    if (at < 0).any():
        raise errors.UserError(
            f"{path} has {columns['name'][at.argmin()]!r}, which the features lack: "
            "name the features of all its images"
        )
    return at


def _dups(columns, names, path) -> dict[str, np.ndarray]:
    """Return the columns of dedup; images that it does not have are kept."""
    at = _rows(columns, names, path)
    wholly = {"component": np.full(len(names), -1), "kept": np.ones(len(names), bool)}
    if "leak" in columns:
        wholly["leak"] = np.full(len(names), "", object)
    for name, values in wholly.items():
        values[at] = columns[name]
    return wholly


def _levels(columns, names, path) -> list[np.ndarray]:
    """Return the clusters of each level, numbered; -1 for images in none."""
    at = _rows(columns, names, path)
    levels = []
    while (name := f"c{len(levels) + 1}") in columns:
        values = columns[name]
        used = np.array([value is not None for value in values], bool)
        if np.issubdtype(values.dtype, np.number):
            used = values >= 0
        found = np.full(len(names), -1, np.int64)
        _, found[at[used]] = np.unique(values[used], return_inverse=True)
        levels.append(found)
    return levels


def _times(path: pathlib.Path, names: np.ndarray) -> np.ndarray:
    """Return how often a manifest shows each image, int64 [N]."""
    counts: collections.Counter[str] = collections.Counter()
    try:
        with open(path, newline="", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                if "name" not in row:
                    raise errors.UserError(
                        f"{path} has no column name: name the --out of curate sample"
                    )
                counts[row["name"]] += int(row.get("repeat") or 1)
    except (OSError, ValueError, csv.Error) as error:
        raise errors.UserError(
            f"cannot read {path} ({error}): name the --out of curate sample"
        ) from error
    times = np.array([counts.pop(name, 0) for name in names], np.int64)
    if counts:
        raise errors.UserError(
            f"{path} lists {next(iter(counts))!r}, which the features lack: name the "
            "features that it was made from"
        )
    return times
