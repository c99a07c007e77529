"""Checks of JSON files that describe a model and its preprocessing, field by field.

Files of transformers, of timm and of this project (runs, exports, reports) are checked
here, so that a wrong value gives a one-line error and not a crash or a hang later.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dinov2_jax import errors
from dinov2_jax.data import preprocessing
from dinov2_jax.models import model_config

_RESTORE = "download it again or restore it"
_KIND_NAMES = {dict: "an object", list: "a list", bool: "true or false"}


def load(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      UserError: The file cannot be read or does not hold an object.
    """
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise ValueError("not an object")
    except RecursionError as error:
        raise errors.UserError(
            f"cannot read {path} (nested too deeply): {_RESTORE}"
        ) from error
    except (OSError, ValueError) as error:
        raise errors.UserError(f"cannot read {path} ({error}): {_RESTORE}") from error
    return fields


def require(fields: Mapping[str, Any], name: str, kind: type, path: Any) -> Any:
    """Return a required field of type dict, list or bool.

    Raises:
      UserError: The field is missing or has another type.
    """
    value = fields.get(name)
    if not isinstance(value, kind):
        raise _invalid(path, name, value, _KIND_NAMES[kind])
    return value


def model(
    fields: Mapping[str, Any],
    path: Any,
    options: Sequence[str] = tuple(model_config.RULES),
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return options of a `ModelConfig`, checked one by one and together.

    Args:
      fields: The fields in the file.
      path: Path of the file, for errors.
      options: Options to return.
      names: The file's names for options that it calls something else, by option.

    Returns:
      {option: value}.

    Raises:
      UserError: An option is missing or wrong.
    """
    found = {}
    for option in options:
        name, rule = (names or {}).get(option, option), model_config.RULES[option]
        if name not in fields or not rule.is_valid(fields[name]):
            raise _invalid(path, name, fields.get(name), rule.words)
        found[option] = fields[name]
    if problem := model_config.inconsistency(found):
        raise errors.UserError(f"{path} is inconsistent: {problem}; {_RESTORE}")
    return found


def read_preprocessing(
    fields: Mapping[str, Any], path: Any, patch_size: int, in_chans: int
) -> preprocessing.Preprocessing:
    """Return the checked preprocessing in a file of this project.

    Args:
      fields: The fields in the file, with "preprocessing".
      path: Path of the file, for errors.
      patch_size: Patch size of the model, px.
      in_chans: Number of channels of the model.

    Raises:
      UserError: A field is missing or wrong, see `check_preprocessing`.
    """
    fields = require(fields, "preprocessing", dict, path)
    prepare = preprocessing.Preprocessing(
        fields.get("resize_size"),
        fields.get("crop_size"),
        tuple(require(fields, "mean", list, path)),
        tuple(require(fields, "std", list, path)),
    )
    return check_preprocessing(prepare, path, patch_size, in_chans)


def check_preprocessing(
    prepare: preprocessing.Preprocessing, path: Any, patch_size: int, in_chans: int
) -> preprocessing.Preprocessing:
    """Check that a model can use a preprocessing.

    Args:
      prepare: Preprocessing from the file.
      path: Path of the file, for errors.
      patch_size: Patch size of the model, px.
      in_chans: Number of channels of the model.

    Returns:
      `prepare`.

    Raises:
      UserError: A size is not a positive whole number, the crop is not a multiple of
        the patch size, or mean or std have invalid values or the wrong length.
    """
    for name in ("resize_size", "crop_size"):
        value, rule = getattr(prepare, name), model_config.whole_number(1)
        if not rule.is_valid(value):
            raise _invalid(path, name, value, rule.words)
    if prepare.crop_size % patch_size:
        nearest = max(round(prepare.crop_size / patch_size), 1) * patch_size
        raise _invalid(
            path,
            "crop_size",
            prepare.crop_size,
            f"whole patches of {patch_size} px, such as {nearest}",
        )
    for name in ("mean", "std"):
        value = getattr(prepare, name)
        # Files for other channels often keep the three values of RGB.
        if len(value) not in (1, 3, in_chans) or not all(
            map(model_config.is_number, value)
        ):
            raise _invalid(path, name, list(value), f"{in_chans} numbers")
    if min(prepare.std) <= 0:
        raise _invalid(path, "std", list(prepare.std), "numbers above 0")
    return prepare


def _invalid(path: Any, name: str, value: Any, expected: str) -> errors.UserError:
    shown = "nothing" if value is None else repr(value)[:60]
    return errors.UserError(
        f"{path} has {name} = {shown}: expected {expected}; {_RESTORE}"
    )
