"""Results of a study on disk: one row for each arm, seed and length."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from dinov2_jax import files

FOLDER = pathlib.Path(__file__).parents[1] / "results" / "learning"

Row = dict[str, Any]


@contextlib.contextmanager
def hold(path: pathlib.Path) -> Iterator[None]:
    """Hold a lock file, after waiting for the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path: pathlib.Path) -> list[Row]:
    """Return the rows of a file, [] if there is none."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def add(path: pathlib.Path, row: Row, lock: pathlib.Path) -> None:
    """Add a row in place of the one of the same arm, seed and length.

    Args:
      path: The file of the study.
      row: The row.
      lock: Lock file of those who write the file.
    """
    with hold(lock):
        rows = [other for other in read(path) if key(other) != key(row)]
        rows = sorted([*rows, row], key=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"study": path.stem, "rows": rows}, indent=1)
        files.write_text(path, text + "\n")


def key(row: Row) -> tuple[int, str, int]:
    """Return what identifies a row: length, arm and seed."""
    return row["steps"], row["arm"], row["seed"]
