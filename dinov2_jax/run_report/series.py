"""The metrics of a run as arrays, from WORKDIR/metrics.jsonl."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_BLOCK = 4096  # rows that are held as Python objects


@dataclasses.dataclass(frozen=True)
class Series:
    """The values of one metric.

    Attributes:
      steps: Numbers of finished steps, [n], ascending.
      values: Values, [n].
    """

    steps: np.ndarray
    values: np.ndarray


def read(workdir: pathlib.Path) -> dict[str, Series]:
    """Return all numbers of metrics.jsonl by name, in the order of their appearance.

    Lines that are no rows, such as one that was cut off by a kill, are left out.

    Args:
      workdir: The run's folder.
    """
    blocks: dict[str, list[np.ndarray]] = {}  # of steps and values, [2, n]
    try:
        with open(workdir / "metrics.jsonl", "rb") as file:
            for names, rows in _blocks(file):
                columns = _columns(rows)
                steps = columns[names.index("step")]
                for name, values in zip(names, columns):
                    if name != "step" and values is not None:
                        both = np.stack([steps, values])
                        blocks.setdefault(name, []).append(both)
    except OSError:
        return {}
    result = {}
    for name, parts in blocks.items():
        steps, values = np.concatenate(parts, axis=1)
        order = np.argsort(steps, kind="stable")
        result[name] = Series(steps[order], values[order])
    return result


def _blocks(lines) -> Iterator[tuple[tuple[str, ...], list[list[Any]]]]:
    """Yield rows with the same names: the names, and the values of each row."""
    waiting: dict[tuple[str, ...], list[list[Any]]] = {}
    for line in lines:
        try:
            row = json.loads(line)
            float(row["step"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        rows = waiting.setdefault(tuple(row), [])
        rows.append(list(row.values()))
        if len(rows) == _BLOCK:
            yield tuple(row), rows
            del waiting[tuple(row)]
    yield from waiting.items()


def _columns(rows: list[list[Any]]) -> list[np.ndarray | None]:
    """Return the columns of some rows; None for one that has anything but numbers."""
    try:
        return list(np.array(rows, np.float64).T)
    except (ValueError, TypeError):
        return [_column(list(values)) for values in zip(*rows)]


def _column(values: list[Any]) -> np.ndarray | None:
    try:
        return np.array([float(value) for value in values])
    except (ValueError, TypeError):
        return None
