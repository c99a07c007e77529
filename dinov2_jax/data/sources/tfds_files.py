"""Folders of tensorflow-datasets, recognised by the `dataset_info.json` in each.

DATA_DIR/NAME/VERSION or DATA_DIR/NAME/CONFIG/VERSION holds it and the records.
"""

import glob
import itertools
import json
import os

from dinov2_jax import errors

_NOTE = "dataset_info.json"
_DEPTH = 3  # folders below DATA_DIR
_MOST = 10_000  # files of a data set to check for changes


def refuse(given: str, field: str) -> None:
    """Raise UserError if a path is part of a data set of tensorflow-datasets.

    Args:
      given: The path: DATA_DIR, a folder in it, or a file.
      field: The configuration field, or the argument of a program.

    Raises:
      UserError: There is such a data set; the message says how to read it.
    """
    folder = os.path.abspath(given)
    if not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    for depth in range(_DEPTH + 1):
        pattern = os.path.join(glob.escape(folder), *["*"] * depth, _NOTE)
        for path in itertools.islice(filter(_is_note, glob.iglob(pattern)), 1):
            name, data_dir = _name(path)
            raise errors.UserError(
                f"{field} = {given} holds {name} of tensorflow-datasets: "
                + _advice(name, data_dir, field)
            )


def _is_note(path: str) -> bool:
    """Return whether tensorflow-datasets wrote a file, not Hugging Face's datasets."""
    try:
        with open(path) as file:
            return "features" not in json.load(file)
    except (OSError, ValueError, TypeError):
        return False


def _name(note: str) -> tuple[str, str]:
    """Return (NAME/CONFIG:VERSION, DATA_DIR) of a `dataset_info.json`."""
    folder, version = os.path.split(os.path.dirname(note))
    try:
        with open(note) as file:
            fields = json.load(file)
        config, name = fields.get("configName"), fields["name"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        config, name = None, os.path.basename(folder)
    if config:
        folder, name = os.path.dirname(folder), f"{name}/{config}"
    return f"{name}:{version}", os.path.dirname(folder)


def _advice(name: str, data_dir: str, field: str) -> str:
    if field == "data.path":
        return (
            f"set --config.data.source=tfds --config.data.tfds_name={name} "
            f"--config.data.path={data_dir}"
        )
    if field.startswith(("data.", "evaluation.")):
        return (
            f"{field} cannot read that: pack it first (python -m dinov2_jax.data shard "
            f"{data_dir} DST --tfds-name={name}) and name DST"
        )
    return f"name {data_dir} --tfds-name={name}"


def state(folder: str) -> list[list]:
    """Return [name, size, mtime in ns] of the files in a data set's folder, sorted.

    Only the first 10,000 files are included.
    """
    found = []
    with os.scandir(folder) as entries:
        files = sorted((e for e in entries if e.is_file()), key=lambda e: e.name)
        for entry in files[:_MOST]:
            status = entry.stat()
            found.append([entry.name, status.st_size, status.st_mtime_ns])
    return found
