"""Reader of the report that `convert` writes next to a file or into a folder.

The report holds settings that tensors do not determine, and the preprocessing. It is
used only if the weights have a SHA-256 that it records, whatever their name.
"""

import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from dinov2_jax import files
from dinov2_jax.weights import json_fields

_IN_FOLDER = "conversion.json"
_BESIDE_FILE = ".json"  # appended to the whole name


def path_of(path: pathlib.Path) -> pathlib.Path:
    """Return the path of the report on a file or folder of weights."""
    if path.is_dir():
        return path / _IN_FOLDER
    return path.with_name(f"{path.name}{_BESIDE_FILE}")


def read(weights: pathlib.Path, path: pathlib.Path) -> dict[str, Any]:
    """Return the report at `path` on the file `weights`.

    Args:
      weights: File of tensors.
      path: Path of the report.

    Returns:
      Its fields; {} if there is no report, or, with a warning, if it describes other
      bytes.
    """
    try:
        report: Any = json.loads(path.read_text())
        recorded = list(report["sha256"].values())
        digest = files.sha256(weights)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    except RecursionError:  # nested too deeply to be a report
        return {}
    if digest not in recorded:
        logging.warning(
            "%s is the report on another file: %s is read without it, with default "
            "interpolation and preprocessing; put its own report there",
            *(path, weights),
        )
        return {}
    return report


def settings(
    report: dict[str, Any], path: pathlib.Path, fields: Sequence[str]
) -> dict[str, Any]:
    """Return settings of the model from what `read` returned; {} if it was empty.

    Args:
      report: The report.
      path: Its path, for errors.
      fields: Fields of the model's description to return.

    Raises:
      UserError: A field is missing or invalid.
    """
    if not report:
        return {}
    return json_fields.model(
        json_fields.require(report, "model", dict, path), path, fields
    )
