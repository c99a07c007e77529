"""Images of test sets that are among those to train on."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax.curate import features as features_lib
from dinov2_jax.curate import search, tables


@dataclasses.dataclass
class Leak:
    """Pairs between the images to train on and a test set.

    Attributes:
      test: Name of the test set's features.
      size: Number of its images.
      names: Names of the images to train on, object [pairs].
      rows: Their rows, int [pairs].
      test_names: Names of the test set's images, object [pairs].
      similarity: Similarities, float32 [pairs].
      dropped: Number of images that leave because of this test set.
    """

    test: str
    size: int
    names: np.ndarray
    rows: np.ndarray
    test_names: np.ndarray
    similarity: np.ndarray
    dropped: int = 0

    def record(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "test": self.test,
            "test_images": self.size,
            "leaked_test_images": len(set(self.test_names)),
            "leaking_images": len(set(self.rows.tolist())),
            "dropped": self.dropped,
        }

    def describe(self) -> str:
        """Return the line for people."""
        counts = self.record()
        leaked = counts["leaked_test_images"]
        return (
            f"{self.test}: {leaked:,} of {self.size:,} test images "
            f"({leaked / self.size:.1%}) are like {counts['leaking_images']:,} images; "
            f"with their components {self.dropped:,} leave"
        )


def find(
    features: features_lib.Features,
    test: features_lib.Features,
    name: str,
    *,
    threshold: float,
) -> Leak:
    """Find the pairs with a test set.

    Args:
      features: Features of the images to train on.
      test: Features of the test set.
      name: Name of the test set.
      threshold: Similarity that pairs exceed.
    """
    pairs = search.find_pairs(
        features, others=test, threshold=threshold, what=f"against {name}"
    )
    return Leak(
        test=name,
        size=len(test),
        names=features.names[pairs.left],
        rows=pairs.left,
        test_names=test.names[pairs.right],
        similarity=pairs.similarity,
    )


def drop(
    columns: dict[str, np.ndarray], counts: dict[str, int], leaks: Sequence[Leak]
) -> None:
    """Let whole components that touch a test set leave; change table and counts.

    Args:
      columns: Columns of the table; `kept` and `leak` are changed.
      counts: Counts; `kept` and `leaking` are set.
      leaks: The test sets; `dropped` is set.
    """
    component = columns["component"]
    for leak in leaks:
        touched = np.zeros(len(component), bool)
        touched[leak.rows] = True
        touched |= (component >= 0) & np.isin(component, component[leak.rows])
        leak.dropped = int(touched.sum())
        columns["kept"][touched] = False
        first = touched & (columns["leak"] == "")
        columns["leak"][first] = leak.test
    counts["kept"] = int(columns["kept"].sum())
    counts["leaking"] = int(np.sum(columns["leak"] != ""))


def write(out: pathlib.Path, leaks: Sequence[Leak]) -> None:
    """Write all pairs with test sets beside the table: OUT.leaks.parquet.

    Args:
      out: Path of the table.
      leaks: The test sets.
    """
    columns = {
        "name": np.concatenate([leak.names for leak in leaks]),
        "test": np.concatenate(
            [np.full(len(leak.names), leak.test, object) for leak in leaks]
        ),
        "test_name": np.concatenate([leak.test_names for leak in leaks]),
        "similarity": np.concatenate([leak.similarity for leak in leaks]),
    }
    path = out.with_name(f"{out.stem}.leaks.parquet")
    tables.write(path, columns, {"step": "dedup", "leaks": [x.record() for x in leaks]})
