"""Selections from a long-tailed set: by what is known of it, and by curation."""

import argparse
import csv
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import numpy as np

from benchmarks.learning import long_tail, results
from dinov2_jax import files
from dinov2_jax.curate import allocation, balance, cluster, everything, hierarchy
from dinov2_jax.curate import sample as sample_step


def choose_random(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Return names of images that are chosen without regard to anything.

    Args:
      names: Names of a set's images, as of `long_tail.names`.
      count: Number of images to choose.
      seed: Seed of the choice.
    """
    times = allocation.choose(np.array(names), [], count, seed=seed)
    return np.repeat(names, times).tolist()


def choose_oracle(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Return names of images, none a copy, as many of each photograph as possible.

    Args:
      names: Names of a set's images, as of `long_tail.names`.
      count: Number of images to choose.
      seed: Seed of the choice.
    """
    originals = [name for name in names if long_tail.original(name) == name]
    shown = [long_tail.photograph(name) for name in originals]
    _, classes = np.unique(shown, return_inverse=True)
    times = allocation.choose(np.array(originals), [classes], count, seed=seed)
    return np.repeat(originals, times).tolist()


# Choices by what only the maker of a set knows.
KNOWN: Mapping[str, Callable[[Sequence[str], int, int], list[str]]] = {
    "random": choose_random,
    "oracle": choose_oracle,
}


def write_known(pool: pathlib.Path, path: pathlib.Path, count: int, seed: int) -> None:
    """Write a list of images that needs no features.

    Args:
      pool: Folder of a set.
      path: The list, whose stem is one of `KNOWN`.
      count: Number of images to choose.
      seed: Seed of the choice.
    """
    chosen = KNOWN[path.stem](long_tail.names(pool), count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["path", *(str(pool / name) for name in chosen)]
    files.write_text(path, "\n".join(lines) + "\n")


def write_curated(
    pool: pathlib.Path,
    folder: pathlib.Path,
    model: pathlib.Path,
    *,
    size: int,
    count: int,
    seed: int,
) -> None:
    """Write the lists curated.csv and flat.csv, unless that is done already.

    Args:
      pool: Folder of a set.
      folder: Folder of the lists.
      model: The model whose features are clustered: a workdir or an export.
      size: Side of the crops that are embedded, px.
      count: Number of images to choose.
      seed: Seed of all steps.
    """
    flat = folder / "flat.csv"
    with results.hold(folder.with_suffix(".lock")):
        if flat.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        out, table = folder / "curated.csv", folder / "flat.parquet"
        choice = [f"--count={count}", f"--seed={seed}"]
        embed = [f"--model={model}", f"--size={size}"]
        _do(everything, [str(pool), *embed, *choice, f"--out={out}"])
        features = out.with_suffix(".steps") / "features.parquet"
        clusters = hierarchy.default_clusters(len(long_tail.names(pool)))[0]
        plain = [f"--levels={clusters}", "--resamplings=0", f"--seed={seed}"]
        table.unlink(missing_ok=True)
        _do(cluster, [f"--features={features}", *plain, f"--out={table}"])
        _do(sample_step, [f"--clusters={table}", *choice, f"--out={flat}"])


def _do(step: ModuleType, arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    step.add_flags(parser)
    step.run(parser.parse_args(arguments))


def read(path: pathlib.Path, pool: pathlib.Path) -> list[str]:
    """Return the names of the images of a list.

    Args:
      path: The list.
      pool: Folder of the set that it was chosen from.
    """
    with open(path, newline="") as file:
        paths = [pathlib.Path(row["path"]) for row in csv.DictReader(file)]
    return [path.relative_to(pool).as_posix() for path in paths]


def describe(chosen: Sequence[str], oracle: Sequence[str]) -> dict[str, float]:
    """Return how evenly images show the photographs, and the share of duplicates.

    Args:
      chosen: Names of the images.
      oracle: Names of those of the oracle, which the evenness is relative to.
    """
    classes = sorted({long_tail.photograph(name) for name in oracle})

    def entropy(names: Sequence[str]) -> float:
        shown = [long_tail.photograph(name) for name in names]
        return balance.entropy(np.array([shown.count(name) for name in classes]))

    different = {long_tail.original(name) for name in chosen}
    return {
        "entropy of photographs, of the oracle's": entropy(chosen) / entropy(oracle),
        "duplicates": 1 - len(different) / len(chosen),
    }
