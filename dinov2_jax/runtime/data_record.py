"""What a run was trained on, in WORKDIR/data.json, so that a change is said aloud."""

import json
import pathlib
from typing import Any

from dinov2_jax.data.sources import messages


def update(source: Any, workdir: pathlib.Path, *, resumed: bool, write: bool) -> str:
    """Compares the images with those of the run so far, and notes what they are now.

    Args:
      source: `data.sources.registry.Source`.
      workdir: Of the run.
      resumed: False where the run begins, whatever the folder says.
      write: False for all but one of several processes.

    Returns:
      One line if they are others than before, else "".
    """
    path = workdir / "data.json"
    now = {
        "fingerprint": source.fingerprint,
        "images": len(source),
        "description": source.describe(),
    }
    before = _read(path) if resumed else {}
    if write:
        temporary = path.with_name("data.json.tmp")
        temporary.write_text(json.dumps(now, indent=2) + "\n")
        temporary.replace(path)
    if not before or before["fingerprint"] == now["fingerprint"]:
        return ""
    then = messages.counted(before["images"], "image")
    if before["images"] == now["images"]:
        what = f"{then} then and now, but other names, sizes or times of change"
    else:
        what = f"{then} then, {now['images']:,} now"
    return (
        f"the images changed since this run last started: {what}; the run goes on with "
        "those of now, in another order than without the change"
    )


def _read(path: pathlib.Path) -> dict[str, Any]:
    """{} where there is nothing that can be compared with."""
    try:
        content = json.loads(path.read_text())
        return {"fingerprint": content["fingerprint"], "images": int(content["images"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
