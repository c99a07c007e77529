"""Choose images evenly from the clusters and write a list that training takes.

Each cluster of the highest level gives the same number of images, as far as it has
them; so does each cluster within it, and so on. Within the smallest clusters images are
chosen at random. The list has the columns `path` and `name`; an image that is chosen
several times has several lines.
"""

import argparse
import collections
import csv
import io
import json
import operator
import os
import pathlib
import re
import shlex
from typing import Any

import numpy as np

from dinov2_jax import cli, errors, files
from dinov2_jax.curate import allocation, named_files, sampling_sql, tables

_COMPARISONS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*")
_LOOKED_AT = 100  # first paths, of which at least one must exist
_CURATED_WEIGHT, _RAW_WEIGHT = 3.0, 1.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of this step.

    Args:
      parser: The parser that gets them.
    """
    add = parser.add_argument
    add(
        "--clusters",
        type=cli.path,
        required=True,
        help="table of `cluster`, or of another program with `name` and c1, c2, ... "
        "(from small clusters to large ones); without those columns images are chosen "
        "at random",
    )
    add(
        "--count",
        type=cli.positive,
        help="number of images (default: all that are left); beyond those, all are "
        "repeated",
    )
    add(
        "--exclude",
        type=cli.path,
        nargs="+",
        default=[],
        metavar="DUPS",
        help="tables with `name` and `kept`, of `dedup` or another program: leave out "
        "images that are not kept",
    )
    add(
        "--only",
        type=cli.path,
        metavar="RETRIEVED",
        help="table of `retrieve`: leave out all other images",
    )
    add(
        "--scores",
        type=cli.path,
        metavar="TABLE",
        help="Parquet file of another program, with `name` and columns of numbers",
    )
    add(
        "--drop",
        type=condition,
        action="append",
        default=[],
        metavar="CONDITION",
        help='images to leave out by --scores, such as "nsfw>0.5"; may be repeated',
    )
    add(
        "--root",
        type=cli.path,
        metavar="FOLDER",
        help="folder that the names are relative to; needed if the table has no column "
        "`path`",
    )
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of the choice (default: 0)",
    )
    add(
        "--mixture",
        metavar="DATA",
        type=os.path.expanduser,
        help="all the images (a folder, a list, shards): print how to train on three "
        "chosen images for each one of those",
    )
    add(
        "--sql",
        choices=sampling_sql.DIALECTS,
        help="print the query that makes the same choice of the same table instead",
    )
    add("--out", type=cli.path, help="the list to write, *.csv")


def condition(text: str) -> tuple[str, str, float]:
    """Parse a condition, for use as the type of a flag.

    Args:
      text: The condition, such as "nsfw>0.5".

    Returns:
      Column, comparison and number.
    """
    found = _CONDITION.fullmatch(text)
    try:
        if found:
            return found[1], found[2], float(found[3])
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f'{text!r} is no condition such as "nsfw>0.5"')


def run(args: argparse.Namespace) -> None:
    """Choose images and write the list.

    Args:
      args: The parsed flags.

    Raises:
      UserError: A table cannot be read or does not fit, or no image is left.
    """
    if not args.sql:
        if args.out is None:
            raise errors.UserError("--out is missing: name the list to write, *.csv")
        tables.check_out(args.out, suffix=".csv")
    if bool(args.scores) != bool(args.drop):
        raise errors.UserError(
            "--scores and --drop belong together: --scores f.parquet --drop 'nsfw>0.5'"
        )
    names, rows = tables.layout(args.clusters)  # a table of 1e9 rows is not read
    tables.need(dict.fromkeys(names), ["name"], path=args.clusters)
    levels = cluster_columns(names)
    paths = ["path"] if "path" in names and not args.root and not args.sql else []
    tables.refuse_nulls(args.clusters, ["name", *paths])
    tables.refuse_unclustered(args.clusters, levels)
    if args.sql:
        _print_query(args, rows, len(levels))
        return
    columns, _ = tables.read(args.clusters, ["name", *levels, *paths])
    _refuse_repeated(columns["name"], args.clusters)
    kept, counts = _filter(args, columns["name"])
    columns = {name: values[kept] for name, values in columns.items()}
    if not len(columns["name"]):
        raise errors.UserError(
            "no image is left: " + ", ".join(f"{n:,} {what}" for what, n in counts)
        )
    count = args.count or len(columns["name"])
    times = allocation.choose(
        columns["name"], [columns[name] for name in levels], count, seed=args.seed
    )
    chosen = np.repeat(np.arange(len(times)), times)
    paths = _paths(args, columns, chosen)
    counts += [("chosen", count), ("different images", int((times > 0).sum()))]
    _write(args, paths, columns["name"][chosen], counts)
    for what, number in counts:
        print(f"{number:>12,} {what}")
    print(f"wrote {args.out}")
    print(_training_flag(args))


def cluster_columns(columns: Any) -> list[str]:
    """Return the names of a table's columns c1, c2, ... up to the first missing one.

    Args:
      columns: The columns by name.
    """
    found = []
    while (name := f"c{len(found) + 1}") in columns:
        found.append(name)
    return found


def _print_query(args, rows: int, levels: int) -> None:
    if args.exclude or args.only or args.scores or (args.count or 0) > rows:
        raise errors.UserError(
            "--sql prints the choice among all rows of a table, each once at most: "
            "leave out --exclude, --only and --scores, and filter the table before"
        )
    if not levels:
        raise errors.UserError(
            f"{args.clusters} has no column c1: make it with dinov2-jax curate cluster"
        )
    text = sampling_sql.query(
        str(args.clusters),
        levels=levels,
        count=args.count or rows,
        seed=args.seed,
        dialect=args.sql,
    )
    print(text, end="")


def _filter(args, names: np.ndarray) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Return whether each image is left, and how many each filter found."""
    kept = np.ones(len(names), bool)
    counts = [("images", len(names))]

    def leave_out(which: np.ndarray, what: str) -> None:
        counts.append((what, int((which & kept).sum())))
        kept[which] = False

    if args.only:
        columns, _ = tables.read(args.only, ["name"])
        wanted = set(columns["name"])
        leave_out(np.array([name not in wanted for name in names]), "not wanted")
    for path in args.exclude:
        leave_out(_duplicates(names, path), "duplicates")
    if args.scores:
        dropped = dict.fromkeys(column for column, _, _ in args.drop)
        columns, _ = tables.read(args.scores, list(dict.fromkeys(["name", *dropped])))
        places = _places(names, columns["name"])
        missing = np.flatnonzero(places < 0)
        if len(missing):
            raise errors.UserError(
                f"{args.scores} has no row for {len(missing):,} of {len(names):,} "
                f"images, such as {names[missing[0]]!r}: make it from all images of "
                "--clusters"
            )
        for column in dropped:  # what has no score is not known to be harmless
            unknown = np.isnan(_numbers(columns, column, args)[places])
            if unknown.any():
                leave_out(unknown, f"without {column}")
        for column, comparison, limit in args.drop:
            leave_out(
                _COMPARISONS[comparison](columns[column][places], limit),
                f"with {column} {comparison} {limit:g}",
            )
    return kept, counts


def _refuse_repeated(names: np.ndarray, path: pathlib.Path) -> None:
    if len(set(names)) < len(names):
        [(name, count)] = collections.Counter(names).most_common(1)
        raise errors.UserError(
            f"{path} has {name!r} {count} times: names are keys, so give each image "
            "one row"
        )


def _duplicates(names: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Return which images a table leaves out; one that it does not have is kept."""
    columns, _ = tables.read(path, ["name", "kept"])
    kept = columns["kept"]
    if kept.dtype != bool:
        raise errors.UserError(
            f"{path}: the column kept has {kept.dtype}, not true or false: write it as "
            "booleans without nulls"
        )
    if not len(kept):
        return np.zeros(len(names), bool)
    places = _places(names, columns["name"])
    if (places < 0).all():
        raise errors.UserError(
            f"{path} has none of the images of --clusters, such as {names[0]!r}, only "
            f"others, such as {columns['name'][0]!r}: use the same names in both"
        )
    return (places >= 0) & ~kept[places]


def _numbers(columns, column: str, args) -> np.ndarray:
    values = columns[column]
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise errors.UserError(
            f"{args.scores}: the column {column} has {values.dtype}, not numbers: "
            "write it as floats"
        )
    return values


def _places(names, others) -> np.ndarray:
    """Return the row of each name among others, -1 if it is not there, int64 [N]."""
    rows = {name: row for row, name in enumerate(others)}
    return np.array([rows.get(name, -1) for name in names], np.int64)


def _paths(args, columns, chosen: np.ndarray) -> list[str]:
    """Return the paths of the chosen images."""
    if args.root:
        root = os.path.abspath(args.root)
        paths = [os.fsdecode(named_files.path(root, name)) for name in columns["name"]]
    elif "path" in columns:
        paths = [os.fsdecode(path) for path in columns["path"]]
    else:
        raise errors.UserError(
            f"{args.clusters} has no column `path`: add --root, the folder that was "
            "embedded"
        )
    found = [paths[i] for i in chosen]
    if not any(
        os.path.exists(os.path.join(args.out.parent, path))
        for path in found[:_LOOKED_AT]
    ):
        raise errors.UserError(
            f"{found[0]} does not exist, nor does any of the first {_LOOKED_AT} chosen "
            "images: add --root, the folder that was embedded"
        )
    return found


def _write(args, paths: list[str], names: np.ndarray, counts) -> None:
    """Write the list, and its record beside it."""
    record = {
        "step": "sample",
        "inputs": {
            str(path): tables.digest(path)
            for path in (args.clusters, *args.exclude, args.only, args.scores)
            if path
        },
        "parameters": {"drop": ["".join(map(str, drop)) for drop in args.drop]},
        "counts": dict(counts),
        "seed": args.seed,
    }
    text = json.dumps(record, indent=1)
    with files.open_new(args.out.with_name(f"{args.out.name}.json")) as file:
        file.write(text.encode() + b"\n")
    with files.open_new(args.out) as binary:
        file = io.TextIOWrapper(
            binary, "utf-8", errors="surrogateescape", newline="", write_through=True
        )
        rows = csv.writer(file)
        rows.writerow(["path", "name"])
        rows.writerows(zip(paths, names))
        file.detach()


def _training_flag(args) -> str:
    """Return the flag that trains on the list."""
    ours = str(pathlib.Path(args.out).absolute())
    if not args.mixture:
        return f"train on it with {shlex.quote(f'--config.data.path={ours}')}"
    raw = os.path.abspath(args.mixture)
    mixture = ((ours, _CURATED_WEIGHT), (raw, _RAW_WEIGHT))
    return f'train on both with --config.data.mixture="{mixture}"'
