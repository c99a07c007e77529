"""Levels of clusters in a folder, so that a run that was killed goes on.

The folder holds `settings.json`, `level_T.npz` of each finished level T and
`unfinished.npz` after the last k-means of the present one. A run that goes on from
there ends with the same bits.

Shapes: N rows, D width, K clusters of a level.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov2_jax import errors, files
from dinov2_jax.curate import kmeans


@dataclasses.dataclass(frozen=True)
class Level:
    """The clusters of one level.

    Attributes:
      centroids: float32 [K, D].
      assignment: Cluster of each row of the level below, int32 [N].
    """

    centroids: np.ndarray
    assignment: np.ndarray


class State:
    """Results that survive a kill, in a folder; a context manager that locks it.

    Args:
      folder: The folder, made if it does not exist; its parent does.
      settings: All that the results depend on, as JSON values.

    Raises:
      UserError: Another process works there, or the folder has the results of other
        settings, or cannot be written.
    """

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self._folder = folder
        self._settings = json.loads(json.dumps(dict(settings)))

    def __enter__(self) -> "State":
        self._folder.mkdir(exist_ok=True)
        self._lock = files.lock(
            self._folder / "lock",
            what=str(self._folder),
            fix="wait for it to end or choose another --out",
        )
        path = self._folder / "settings.json"
        if path.exists():
            saved = json.loads(path.read_bytes())
            if saved != self._settings:
                self._lock.close()
                names = [k for k in self._settings if saved.get(k) != self._settings[k]]
                raise errors.UserError(
                    f"{self._folder} holds an unfinished run with different "
                    f"{' and '.join(names) or 'settings'}: finish it with its own "
                    "flags, choose another --out, or remove the folder"
                )
        else:
            files.write_text(path, json.dumps(self._settings, indent=1))
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.close()

    def remove(self) -> None:
        """Remove the folder, after the results have been written elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def level(self, number: int) -> Level | None:
        """Return a finished level; None if it is not finished."""
        arrays = self._read(f"level_{number}.npz")
        return Level(**arrays) if arrays else None

    def save_level(self, number: int, level: Level) -> None:
        """Keep a finished level."""
        self._write(f"level_{number}.npz", dataclasses.asdict(level))

    def unfinished(self, number: int) -> tuple[kmeans.Clusters | None, int]:
        """Return the last clusters of a level and how often it was clustered."""
        arrays = self._read("unfinished.npz")
        if not arrays or arrays.pop("level") != number:
            return None, 0
        turns = int(arrays.pop("turns"))
        return kmeans.Clusters(**arrays, steps=0, splits=0), turns

    def save_unfinished(
        self, number: int, turns: int, clusters: kmeans.Clusters
    ) -> None:
        """Keep the clusters of an unfinished level."""
        arrays = {
            "centroids": clusters.centroids,
            "assignment": clusters.assignment,
            "distances": clusters.distances,
        }
        self._write("unfinished.npz", arrays | {"level": number, "turns": turns})

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def _write(self, name: str, arrays: Mapping[str, Any]) -> None:
        with files.open_new(self._folder / name) as file:
            np.savez(file, **arrays)
