"""Checks of JSON files that describe a model and its preprocessing, field by field.

Files of transformers, of timm and of this project (runs, exports, reports) are checked
here, so that a wrong value gives a one-line error and not a crash or a hang later.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dinov2_jax import errors
from dinov2_jax.data import preprocessing

_AGAIN = "fetch it again, or restore it from where it came"


_WORDS = {dict: "an object", list: "a list", bool: "true or false"}


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
            f"cannot read {path} (nested too deeply): {_AGAIN}"
        ) from error
    except (OSError, ValueError) as error:
        raise errors.UserError(f"cannot read {path} ({error}): {_AGAIN}") from error
    return fields


def require(fields: Mapping[str, Any], name: str, kind: type, path: Any) -> Any:
    """Return a required field of type dict, list or bool.

    Raises:
      UserError: The field is missing or of another type.
    """
    value = fields.get(name)
    if not isinstance(value, kind):
        raise _wrong(path, name, value, _WORDS[kind])
    return value


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_MOST <= value <= _MOST  # false for NaN
    )


def _whole(least: int) -> tuple[Callable[[Any], bool], str]:
    def good(value):
        return type(value) is int and least <= value <= _MOST

    return good, f"a whole number from {least} to {_MOST}"


_MOST = 2**20  # largest number in any field
_FLAG = (lambda value: isinstance(value, bool), "true or false")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "embed_dim": _whole(1),
    "depth": _whole(1),
    "num_heads": _whole(1),
    "patch_size": _whole(1),
    "image_size": _whole(1),
    "in_chans": _whole(1),
    "ffn_layer": (lambda value: value in ("mlp", "swiglufused"), "mlp or swiglufused"),
    "ffn_ratio": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    "qkv_bias": _FLAG,
    "proj_bias": _FLAG,
    "ffn_bias": _FLAG,
    "layerscale": (lambda value: _is_number(value) and value >= 0, "0 or a number"),
    "num_register_tokens": _whole(0),
    "interpolate_offset": (_is_number, "a number"),
    "interpolate_antialias": _FLAG,
}


def model(
    fields: Mapping[str, Any],
    path: Any,
    wanted: Sequence[str],
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return fields of `architecture.describe`, checked one by one and together.

    Args:
      fields: The fields in the file.
      path: Path of the file, for errors.
      wanted: Fields of a `VisionTransformer` to return.
      names: The file's names of fields that it names differently, by field.

    Returns:
      {field: value}.

    Raises:
      UserError: A field is missing or wrong.
    """
    names = {field: (names or {}).get(field, field) for field in wanted}
    found = {}
    for field, name in names.items():
        good, words = _KINDS[field]
        if name not in fields or not good(fields[name]):
            raise _wrong(path, name, fields.get(name), words)
        found[field] = fields[name]
    width, heads = found.get("embed_dim", 0), found.get("num_heads", 1)
    if width % heads:
        raise errors.UserError(
            f"{path} says that the model is {width} wide, which {heads} heads do not "
            f"divide: {_AGAIN}"
        )
    side, patch = found.get("image_size", _MOST), found.get("patch_size", 1)
    if side < patch:
        raise errors.UserError(
            f"{path} says that images of {side} px have patches of {patch} px: {_AGAIN}"
        )
    return found


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
      UserError: A size is not a positive whole number, the crop is not in whole
        patches, or mean or std are of another number of channels or not valid numbers.
    """
    for name in ("resize_size", "crop_size"):
        value = getattr(prepare, name)
        good, words = _whole(1)
        if not good(value):
            raise _wrong(path, name, value, words)
    if prepare.crop_size % patch_size:
        nearest = max(round(prepare.crop_size / patch_size), 1) * patch_size
        raise _wrong(
            path,
            "crop_size",
            prepare.crop_size,
            f"whole patches of {patch_size} px, such as {nearest}",
        )
    for name in ("mean", "std"):
        value = getattr(prepare, name)
        # Files for other channels often keep the three values of RGB.
        if len(value) not in (1, 3, in_chans) or not all(map(_is_number, value)):
            raise _wrong(path, name, list(value), f"{in_chans} numbers")
    if min(prepare.std) <= 0:
        raise _wrong(path, "std", list(prepare.std), "numbers above 0")
    return prepare


def _wrong(path: Any, name: str, value: Any, words: str) -> errors.UserError:
    shown = "nothing" if value is None else repr(value)[:60]
    return errors.UserError(f"{path} has {name} = {shown}: expected {words}; {_AGAIN}")
