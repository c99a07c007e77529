"""Reader of the report that `convert` writes next to a file or into a folder.

The report holds settings that tensors do not determine. It is used only if the weights
still have the SHA-256 that it records.
"""

import json
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


def read_settings(
    weights: pathlib.Path, path: pathlib.Path, fields: Sequence[str]
) -> dict:
    """Return settings of the model in the file `weights` from the report at `path`.

    Args:
      weights: File of tensors.
      path: Path of the report.
      fields: Fields of the model's description to return.

    Returns:
      The fields' values; {} if there is no report, or it describes other bytes.

    Raises:
      UserError: The report describes these bytes, but a field is missing or invalid.
    """
    try:
        report: Any = json.loads(path.read_text())
        digests = {pathlib.PurePath(k).name: v for k, v in report["sha256"].items()}
        recorded = digests[weights.name]
        digest = files.sha256(weights)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    except RecursionError:  # nested too deeply to be a report
        return {}
    if recorded != digest:
        return {}
    found = json_fields.require(report, "model", dict, path)
    return json_fields.model(found, path, fields)
