"""The folder of a run: its lock, its config and the record of its images.

WORKDIR/data.json describes the images of the run, so that a change is reported.
"""

import io
import json
import os
import pathlib
import tempfile
from typing import Any

from dinov2_jax import errors, files
from dinov2_jax.data.sources import messages

_TEACHER = "teacher.json"
# What a run writes.
_FILES = (
    *("run.lock", "config.json", "data.json", "metrics.jsonl", "events.jsonl"),
    *("bad_images.txt", "rollbacks.json", "pca.png", _TEACHER, "report.html"),
)
FOLDERS = (
    *("checkpoints", "damaged_checkpoints", "best", "tensorboard", "profile"),
    "trackers",
)
_EFFECTIVE = os.access in os.supports_effective_ids
_PATIENCE = 120  # seconds until a network file system drops the lock of a lost host


def make_workdir(workdir: pathlib.Path) -> None:
    """Create the run's folder.

    Raises:
      UserError: The folder cannot be written to, or something in it blocks a file or
        folder of the run.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise errors.UserError(
            f"cannot write to the folder {workdir} ({error.strerror}): choose another "
            "--workdir"
        ) from error
    for name in (*_FILES, *FOLDERS):
        _check_entry(workdir / name, is_folder=name in FOLDERS)


def _check_entry(path: pathlib.Path, *, is_folder: bool) -> None:
    """Raise `UserError` if the run cannot use what is at a path."""
    if not os.path.lexists(path):
        return
    problem = ""
    if path.is_dir() != is_folder:
        kinds = ("a folder", "a file") if is_folder else ("a file", "a folder")
        problem = f"is {kinds[1]}, and the run needs {kinds[0]} there"
    elif not os.access(path, os.R_OK | os.W_OK, effective_ids=_EFFECTIVE):
        problem = f"belongs to {_owner(path)} and cannot be written"
    if problem:
        raise errors.UserError(f"{path} {problem}: move it or choose another --workdir")


def _owner(path: pathlib.Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return "another user"


def lock(workdir: pathlib.Path) -> io.FileIO:
    """Lock the run's folder, by WORKDIR/run.lock, until the returned file is closed.

    Raises:
      UserError: Another process holds the lock.
    """
    return files.lock(
        workdir / "run.lock",
        what=str(workdir),
        fix="end it or choose another --workdir",
        patience=_PATIENCE,
    )


def read_images_record(workdir: pathlib.Path) -> dict[str, Any]:
    """Return WORKDIR/data.json; {} if it is missing or unusable."""
    try:
        return dict(json.loads((workdir / "data.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write_config(config: Any, workdir: pathlib.Path) -> None:
    """Write WORKDIR/config.json atomically."""
    fields = json.loads(config.to_json_best_effort())
    files.write_text(workdir / "config.json", json.dumps(fields, indent=2) + "\n")


def check_teacher(workdir: pathlib.Path, now: dict[str, str]) -> None:
    """Check that a frozen teacher is that of WORKDIR/teacher.json, if there is one.

    Args:
      workdir: The run's folder.
      now: Source and digest of the teacher.

    Raises:
      UserError: The run began with another teacher, or the record is damaged.
    """
    path = workdir / _TEACHER
    if path.exists():
        try:
            before = json.loads(path.read_text())
            source, digest = before["source"], before["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.UserError(
                f"cannot read {path} ({error}): it says which teacher the run learns "
                "from; restore it, or choose another --workdir"
            ) from error
        if digest != now["digest"] and source == now["source"]:
            raise errors.UserError(
                f"the weights of {source} are no longer those that the run in "
                f"{workdir} learns from (digest {now['digest']} instead of {digest}): "
                "restore them, or choose another --workdir"
            )
        if digest != now["digest"]:
            raise errors.UserError(
                f"the run in {workdir} learns from {source} (digest "
                f"{digest}), not from {now['source']} ({now['digest']}): set "
                "--config.distill.source to that teacher or choose another --workdir"
            )


def write_teacher(workdir: pathlib.Path, now: dict[str, str]) -> None:
    """Record the source and digest of a frozen teacher in WORKDIR/teacher.json."""
    files.write_text(workdir / _TEACHER, json.dumps(now, indent=2) + "\n")


def update_data_record(
    source: Any, workdir: pathlib.Path, *, resumed: bool, write: bool
) -> str:
    """Compare the images with those of the run so far, and record the current ones.

    Args:
      source: The images, a `data.sources.base.Source`.
      workdir: The run's folder.
      resumed: False if the run starts from step 0; data.json is then not compared.
      write: Whether to write data.json; False for every process but the first.

    Returns:
      One line if the images have changed, else "".
    """
    path = workdir / "data.json"
    now = {
        "fingerprint": source.fingerprint,
        "images": len(source),
        "description": source.describe(),
    }
    before = _read_data_record(workdir) if resumed else {}
    if write:
        files.write_text(path, json.dumps(now, indent=2) + "\n")
    if not before or before["fingerprint"] == now["fingerprint"]:
        return ""
    then = messages.counted(before["images"], "image")
    if before["images"] == now["images"]:
        what = f"{then} then and now, but other names, sizes or modification times"
    else:
        what = f"{then} then, {now['images']:,} now"
    return (
        f"the images changed since this run last started: {what}; the run "
        "continues with the current ones, in an order that differs from before"
    )


def check_images(source: Any, workdir: pathlib.Path, moved: list[str]) -> None:
    """Check that a run whose images were moved continues with the same images.

    Args:
      source: The images, a `data.sources.base.Source`.
      workdir: The run's folder.
      moved: The config changes that move the images; if empty, nothing is checked.

    Raises:
      UserError: The images are not those of WORKDIR/data.json.
    """
    before = _read_data_record(workdir)
    if moved and before.get("fingerprint") != source.fingerprint:
        raise errors.UserError(
            f"the run in {workdir} was started with other images ({'; '.join(moved)}; "
            "names, sizes or modification times differ): undo the change or choose "
            "another --workdir"
        )


def _read_data_record(workdir: pathlib.Path) -> dict[str, Any]:
    """Read data.json for comparison; {} if it is missing or unusable."""
    content = read_images_record(workdir)
    try:
        return {"fingerprint": content["fingerprint"], "images": int(content["images"])}
    except (ValueError, KeyError, TypeError):
        return {}
