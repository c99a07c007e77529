"""This project's own folders of weights: runs, their checkpoints, exported weights."""

import json
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dinov2_jax import checkpoint, errors
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import architecture

DESCRIPTION = "model.json"  # of exported weights, beside the folder `weights`
_BRANCHES = {"teacher": "teacher_params", "student": "params"}


def is_own(folder: pathlib.Path) -> bool:
    """Whether a folder is a workdir, one of its checkpoints or an orbax export."""
    return (
        (folder / DESCRIPTION).is_file()
        or (folder / "checkpoints").is_dir()
        or (folder.name.isdigit() and folder.parent.name == "checkpoints")
    )


def read(
    folder: pathlib.Path, which: str | None
) -> tuple[vision_transformer.VisionTransformer, dict[str, Any]]:
    """A folder's module and {"backbone": params, "dino_head": ..., ...}.

    Args:
      folder: One that `is_own`; a workdir gives its newest checkpoint.
      which: "teacher" (also None) or "student"; an export holds only one of them.

    Raises:
      UserError: Nothing is saved yet, or a file is missing or damaged.
    """
    if (folder / DESCRIPTION).is_file():
        described = _load_json(folder / DESCRIPTION)
        held = described["which"]
        if which and held and which != held:
            raise errors.UserError(
                f"{folder} holds no {which}, only the {held}: ask for which={held!r}"
            )
        weights = checkpoint.read_weights((folder / "weights").absolute())
        return architecture.from_description(described["model"]), weights
    if folder.name.isdigit():
        step, workdir = folder, folder.parent.parent
    else:
        steps = [
            p
            for p in (folder / "checkpoints").iterdir()
            if p.name.isdigit() and p.is_dir()
        ]
        if not steps:
            raise errors.UserError(
                f"{folder} holds no finished checkpoint yet: train on, or name another"
            )
        step, workdir = max(steps, key=lambda p: int(p.name)), folder
    config = _namespace(_load_json(workdir / "config.json"))
    module = vision_transformer.make_vision_transformer(config, jnp.float32)
    weights = checkpoint.read_weights(step.absolute(), _BRANCHES[which or "teacher"])
    return module, weights


def write(
    folder: pathlib.Path,
    module: vision_transformer.VisionTransformer,
    weights: Mapping[str, Any],
    which: str | None,
) -> None:
    """Exports weights: FOLDER/weights (orbax) and FOLDER/model.json.

    Args:
      folder: Made where it is missing.
      module: The backbone.
      weights: {"backbone": params, ...}.
      which: Whose weights they are, if that is known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_weights(folder / "weights", dict(weights))
    described = {"model": architecture.describe(module), "which": which}
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")


def _load_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"cannot read {path} ({error}): it says what the weights beside it are; "
            "restore it from where the folder came from"
        ) from error


def _namespace(fields: Any) -> Any:
    if isinstance(fields, dict):
        return types.SimpleNamespace(**{k: _namespace(v) for k, v in fields.items()})
    return fields
