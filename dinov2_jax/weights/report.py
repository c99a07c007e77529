"""The report that `convert` leaves beside a file or in a folder, read back.

It knows what tensors do not tell. It counts only while the weights are the very bytes
that it was written about.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from dinov2_jax.weights import json_fields

_IN_FOLDER = "conversion.json"
_BESIDE_FILE = ".json"  # after the whole name


def path_of(path: pathlib.Path) -> pathlib.Path:
    """Of the report on a file or folder of weights."""
    if path.is_dir():
        return path / _IN_FOLDER
    return path.with_name(f"{path.name}{_BESIDE_FILE}")


def untold(weights: pathlib.Path, path: pathlib.Path, fields: Sequence[str]) -> dict:
    """What the report at `path` says of the model in the file `weights`.

    Args:
      weights: File of tensors.
      path: Of the report.
      fields: Of the model's description, those wanted.

    Returns:
      Their values; {} where there is no report, or one on other bytes.

    Raises:
      UserError: The report is on these bytes, but its fields are not those of a model.
    """
    try:
        report: Any = json.loads(path.read_text())
        digests = {pathlib.PurePath(k).name: v for k, v in report["sha256"].items()}
        wanted = digests[weights.name]
        with open(weights, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    except RecursionError:  # nested deeply: nothing of ours
        return {}
    if wanted != digest:
        return {}
    found = json_fields.require(report, "model", dict, path)
    return json_fields.model(found, path, fields)
