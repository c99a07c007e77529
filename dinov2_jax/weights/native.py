"""This project's own folders of weights: runs, their checkpoints and orbax exports.

A workdir is read as the best weights of the run if it keeps them, else as its newest
checkpoint; WORKDIR/checkpoints is the newest one in any case.
"""

import dataclasses
import json
import logging
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import jax

from dinov2_jax import errors
from dinov2_jax.checkpoint import best_weights, checksums, saved_weights
from dinov2_jax.data import preprocessing
from dinov2_jax.models import lora, model_config, vision_transformer
from dinov2_jax.weights import architecture, json_fields, state_dict

DESCRIPTION = "model.json"  # in an export, next to the folder `weights`
_CHECKPOINTS = "checkpoints"
_BRANCHES = {"teacher": "teacher_params", "student": "params"}


def is_own(folder: pathlib.Path) -> bool:
    """Return whether a folder is a workdir, checkpoints in it or an orbax export."""
    folder = _named(folder)
    return (
        (folder / DESCRIPTION).is_file()
        or (folder.name == _CHECKPOINTS and (folder.parent / "config.json").is_file())
        or ((folder / _CHECKPOINTS).is_dir() and not _is_huggingface(folder))
        or _is_step(folder)
    )


def _named(folder: pathlib.Path) -> pathlib.Path:
    """Return the folder by its own name, which "." and ".." hide."""
    return pathlib.Path(os.path.abspath(folder))


def _is_huggingface(folder: pathlib.Path) -> bool:
    """Return whether a folder's config.json is one of transformers or timm."""
    path = folder / "config.json"
    try:
        fields = json_fields.load(path)
    except errors.UserError:
        return False
    return "model_type" in fields or "architecture" in fields


def _is_step(folder: pathlib.Path) -> bool:
    """Return whether a folder is a checkpoint; a run may have a number as its name."""
    return folder.name.isdecimal() and folder.parent.name == _CHECKPOINTS


def read(
    folder: pathlib.Path, which: str | None
) -> tuple[
    vision_transformer.VisionTransformer,
    dict[str, Any],
    preprocessing.Preprocessing,
    str | None,
]:
    """Read a workdir, a checkpoint or an orbax export.

    Args:
      folder: Folder for which `is_own` is true; a workdir gives its newest checkpoint.
      which: "teacher" or "student"; None reads a run's teacher, or what an export has.

    Returns:
      Module, {"backbone": params, ...}, preprocessing, and "teacher", "student" or, if
      unknown, None.

    Raises:
      UserError: Nothing is saved yet, or a file is missing or damaged.
    """
    folder = _named(folder)
    if (folder / DESCRIPTION).is_file():
        path = folder / DESCRIPTION
        described = json_fields.load(path)
        fields = json_fields.require(described, "model", dict, path)
        options = json_fields.model(fields, path)
        module = vision_transformer.VisionTransformer(
            model_config.ModelConfig(**options)
        )
        prepare = json_fields.read_preprocessing(
            described, path, module.config.patch_size, module.config.in_chans
        )
        stored = described.get("which")
        if stored not in (None, *_BRANCHES):
            raise errors.UserError(
                f"{path} has which = {stored!r}: expected null, "
                f"{' or '.join(_BRANCHES)}"
            )
        if which and which != stored:
            reason = f"only the {stored}" if stored else "and its model is unnamed"
            raise errors.UserError(
                f"{folder} has no {which}, {reason}: leave out which={which!r}"
            )
        weights = saved_weights.read(folder / "weights")
        _check(module, weights, folder)
        return module, weights, prepare, stored
    step, workdir, best = find(folder, which)
    path = workdir / "config.json"
    try:
        config = _namespace(json_fields.load(path))
        module = vision_transformer.VisionTransformer(
            model_config.make_model_config(config)
        )
        json_fields.model(module.config.to_dict(), path)
        patch_size, in_chans = module.config.patch_size, module.config.in_chans
        prepare = preprocessing.make_preprocessing(config, patch_size)
    except (AttributeError, KeyError, TypeError) as error:
        raise errors.UserError(
            f"{path} is not the config of a run ({error}): restore it"
        ) from error
    json_fields.check_preprocessing(prepare, path, patch_size, in_chans)
    students = getattr(getattr(config, "distill", None), "students", ())
    if students:
        names = " or ".join(str(workdir / name) for name, _ in students)
        raise errors.UserError(
            f"{workdir} trained several students: name {names}, which the run writes "
            "when it ends"
        )
    which = which or "teacher"
    branch = None if best else _BRANCHES[which]
    weights = saved_weights.read(step, branch)
    if "lora" in weights:
        pairs = weights.pop("lora")
        adapters = lora.make_lora(config.optim)
        weights["backbone"] = adapters.merge(weights["backbone"], pairs)
    _check(module, weights, step)
    return module, weights, prepare, which


def find(
    folder: pathlib.Path, which: str | None = None
) -> tuple[pathlib.Path, pathlib.Path, bool]:
    """Find the weights that a workdir or a folder of checkpoints is read as.

    Args:
      folder: Folder for which `is_own` is true and that is no export.
      which: "teacher" or "student"; None reads the teacher.

    Returns:
      The folder of the weights, named by their step; the workdir; and whether they are
      the best ones that it keeps.

    Raises:
      UserError: Nothing is saved yet, or the student of the best weights is asked for.
    """
    folder = _named(folder)
    if _is_step(folder):
        return folder, folder.parent.parent, False
    if folder.name == _CHECKPOINTS:
        return _newest(folder), folder.parent, False
    record = best_weights.read(folder)
    if record is None:
        return _newest(folder / _CHECKPOINTS), folder, False
    if which == "student":
        raise errors.UserError(
            f"{folder} keeps its best weights, which are the teacher's: leave out "
            f"which='student', or read the newest in {folder / _CHECKPOINTS}"
        )
    logging.info("%s is read as its best weights, of step %d", folder, record.step)
    return best_weights.folder(folder, record), folder, True


def _newest(checkpoints: pathlib.Path) -> pathlib.Path:
    """Return the newest checkpoint of a run."""
    steps = [p for p in checkpoints.iterdir() if p.name.isdecimal() and p.is_dir()]
    if not steps:
        raise errors.UserError(
            f"{checkpoints.parent} has no finished checkpoint yet: continue training "
            "or choose another"
        )
    return max(steps, key=lambda p: int(p.name))


def _check(module, weights, folder: pathlib.Path) -> None:
    """Check that the backbone is the model in the JSON file next to it."""
    model = "the model in the JSON file next to it"
    config, kernel = module.config, weights["backbone"]["patch_embed"]["proj"]["kernel"]
    values = config.patch_size**2 * config.in_chans
    if kernel.shape[0] != values:
        raise errors.UserError(
            f"{folder} does not match {model}: its patches have {kernel.shape[0]} "
            f"values, not {values} as patch_size={config.patch_size} and "
            f"in_chans={config.in_chans} say: restore that file"
        )
    arrays = state_dict.state_dict_from_params(
        weights["backbone"], patch_size=module.config.patch_size
    )
    architecture.check_backbone(
        {key: array.shape for key, array in arrays.items()},
        module.config,
        str(folder),
        model,
    )


def write(
    folder: pathlib.Path,
    module: vision_transformer.VisionTransformer,
    weights: Mapping[str, Any],
    prepare: preprocessing.Preprocessing,
    which: str | None,
) -> None:
    """Export weights to FOLDER/weights (orbax) and FOLDER/model.json.

    Args:
      folder: Folder of the export, created if missing.
      module: The backbone.
      weights: Parameters, {"backbone": params, ...}.
      prepare: Preprocessing that the model expects.
      which: "teacher", "student" or, if unknown, None.

    Raises:
      UserError: The weights cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved_weights.write(folder / "weights", dict(weights))
    if jax.process_index() == 0:  # orbax would read flipped bits silently
        try:
            checksums.write(folder / "weights")
        except OSError as error:
            raise errors.UserError(
                f"cannot write {folder} ({error.strerror or error}): free disk space "
                "or repair that, then write it again"
            ) from error
    described = {
        "model": module.config.to_dict(),
        "preprocessing": dataclasses.asdict(prepare),
        "which": which,
    }
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")


def _namespace(fields: Any) -> Any:
    if isinstance(fields, dict):
        return types.SimpleNamespace(**{k: _namespace(v) for k, v in fields.items()})
    return fields
