"""The difference of a run's config from the preset that is closest to it."""

import functools
import json
import pathlib
from typing import Any

from dinov2_jax import errors
from dinov2_jax.config import config_file, flattening, resuming


def difference(
    config_path: pathlib.Path,
) -> tuple[str, list[tuple[str, Any, Any]]]:
    """Return the closest preset and the fields that differ from it.

    Args:
      config_path: The config.json of a run.

    Returns:
      The preset's name, and (field, value of the preset, value of the run).

    Raises:
      UserError: The file is damaged.
      OSError: The file cannot be read.
    """
    config = resuming.read_saved(config_path)
    best: tuple[str, list[tuple[str, Any, Any]]] | None = None
    for name, preset in _presets().items():
        fields = [
            (field, preset.get(field, "not set"), config.get(field, "not set"))
            for field in sorted(preset.keys() | config.keys())
            if preset.get(field) != config.get(field)
        ]
        if best is None or len(fields) < len(best[1]):
            best = name, fields
    if best is None:
        raise errors.UserError("no preset can be read")
    return best


@functools.cache
def _presets() -> dict[str, dict[str, Any]]:
    """Return all presets, flattened, as they are saved."""
    return {
        name: flattening.flatten(json.loads(config.to_json_best_effort()))
        for name, config in config_file.presets().items()
    }
