"""Configs in other forms: the config.json of a run, and YAML files of the reference.

It is itself a config file, `converted_config.py:PATH`, for the flags of ml_collections.
The YAML files are those of the reference's configs/train/: each states differences from
its ssl_default_config.yaml, to which configs/default.py is equal.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from dinov2_jax import errors
from dinov2_jax.config import flattening, resuming
from dinov2_jax.configs import default

_SUFFIXES = (".json", ".yaml", ".yml")
# Fields of the reference: their names here. Fields of the sections in `_SAME` that are
# not listed have the same name.
_SAME = ("crops", "dino", "ibot", "optim", "teacher")
_NAMES = {
    **{
        f"student.{name}": f"model.{name}"
        for name in (
            "arch patch_size drop_path_rate drop_path_uniform layerscale ffn_layer "
            "qkv_bias proj_bias ffn_bias num_register_tokens interpolate_offset "
            "interpolate_antialias"
        ).split()
    },
    "student.pretrained_weights": "init.source",
    "train.batch_size_per_gpu": "train.group_size",
    "train.centering": "train.centering",
    "train.num_workers": "data.workers",
    "train.seed": "seed",
    "evaluation.eval_period_iterations": "evaluation.every",
}
# Numbers of epochs of `train.OFFICIAL_EPOCH_LENGTH` steps, here numbers of steps.
_EPOCHS = {
    "optim.epochs": "train.steps",
    "optim.warmup_epochs": "optim.warmup_steps",
    "optim.freeze_last_layer_epochs": "optim.freeze_last_layer_steps",
    "teacher.warmup_teacher_temp_epochs": "teacher.warmup_teacher_temp_steps",
}
_EPOCH_LENGTH = "train.OFFICIAL_EPOCH_LENGTH"
_SCALING = "sqrt_wrt_1024"
# Fields, or prefixes of fields, that change nothing here.
_WITHOUT_EFFECT = (
    *("MODEL.", "compute_precision.", "optim.lr", "student.block_chunks"),
    *("train.output_dir", "train.saveckp_freq", "train.cache_dataset"),
)


def is_convertible(path: pathlib.Path) -> bool:
    """Return whether a config file is in one of the other forms, by its name."""
    return path.suffix.lower() in _SUFFIXES


def get_config(path: str) -> Any:
    """Return the config that a file describes, locked.

    Raises:
      UserError: The file cannot be read or has fields that no config has.
    """
    return read(path)[0]


def read(path: str | os.PathLike) -> tuple[Any, list[str]]:
    """Return the config that a file describes, and lines that say how it was read.

    Raises:
      UserError: The file cannot be read or has fields that no config has.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() == ".json":
        return _of_run(path)
    return _of_reference(path)


def _of_run(path: pathlib.Path) -> tuple[Any, list[str]]:
    saved = resuming.read_saved(path)
    config = default.get_config()
    known = flattening.flatten(config)
    unknown = [n for n in saved if n not in known]
    if unknown:
        raise errors.UserError(
            f"{path} is not the config.json of a run of this version: "
            + "; ".join(flattening.unknown_field(name, known) for name in unknown[:5])
        )
    for name, value in saved.items():
        _set(config, name, value, f"{path}: {name}")
    lacking = [name for name in known if name not in saved]
    lines = [f"the config of {path}, saved by a run"]
    if lacking:
        lines.append(
            f"  not in the file, so as in configs/default.py: {_list(lacking)}"
        )
    return config, lines


def _of_reference(path: pathlib.Path) -> tuple[Any, list[str]]:
    given = flattening.flatten(_read_yaml(path))
    config = default.get_config()
    known = flattening.flatten(config)
    epoch = given.pop(_EPOCH_LENGTH, 1250)
    lines, unused, unknown = [], [], []
    for name, value in given.items():
        if name.startswith(_WITHOUT_EFFECT):
            unused.append(name)
        elif name == "optim.scaling_rule":
            if value != _SCALING:
                raise errors.UserError(
                    f"{path}: {name} = {value!r}: only {_SCALING} is known: remove it "
                    "and set optim.base_lr for that rule"
                )
        elif name == "train.dataset_path":
            folder = _folder_of(str(value))
            if folder:
                config.data.path = folder
            else:
                folder = "(nothing: set --config.data.path=/path/to/images)"
            lines.append(f"  {name} = {value} -> data.path = {folder}")
        elif name in _EPOCHS:
            here = _EPOCHS[name]
            steps = _number(value, f"{path}: {name}") * epoch
            _set(config, here, round(steps), f"{path}: {name}")
            lines.append(f"  {name} = {value} x {epoch} -> {here} = {round(steps)}")
        elif name in _NAMES or (name.split(".")[0] in _SAME and name in known):
            here = _NAMES.get(name, name)
            _set(config, here, value, f"{path}: {name}")
            lines.append(f"  {name} = {value} -> {here}")
        else:
            unknown.append(name)
    if unknown:
        raise errors.UserError(
            f"{path} has fields that the reference's training configs do not have: "
            f"{_list(unknown)}: remove them, or write a config as in configs/"
        )
    if unused:
        lines.append(f"  without effect here: {_list(unused)}")
    group = config.train.group_size
    config.train.batch_size = max(round(config.train.batch_size / group), 1) * group
    lines.append(
        f"  not in the file: how many GPUs; train.batch_size = "
        f"{config.train.batch_size}: set --config.train.batch_size={group} x GPUs"
    )
    return config, [f"{path}, a config of the reference, read as", *lines]


def _read_yaml(path: pathlib.Path) -> Mapping[str, Any]:
    import yaml  # only for this kind of file

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(f"cannot read the config {path} ({reason})") from error
    if not isinstance(content, dict) or not all(
        isinstance(section, dict) for section in content.values()
    ):
        raise errors.UserError(
            f"{path} is not a training config of the reference: it needs sections such "
            "as student: and optim:"
        )
    return content


def _folder_of(dataset: str) -> str:
    """Return the folder of images that a `train.dataset_path` names, or ""."""
    kind, *options = dataset.split(":")
    named = dict(option.partition("=")[::2] for option in options)
    if kind != "ImageNet" or not named.get("root") or "<" in named["root"]:
        return ""
    return os.path.join(named["root"], named.get("split", "TRAIN").lower())


def _set(config: Any, name: str, value: Any, what: str) -> None:
    """Set a field to a value of JSON or YAML, converted to the type of the default."""
    *sections, field = name.split(".")
    for section in sections:
        config = config[section]
    before = config[field]
    try:
        if isinstance(before, tuple):
            value = _as_tuple(value)
        elif type(before) in (int, float) and not isinstance(value, bool):
            number = _number(value, what)
            value = type(before)(number) if number == type(before)(number) else value
        config[field] = value
    except (TypeError, ValueError) as error:
        raise errors.UserError(
            f"{what} = {value!r}: not a {type(before).__name__} like {before!r}"
        ) from error


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _number(value: Any, what: str) -> float:
    """Return a number; YAML reads 1e-5, without a point, as a text."""
    try:
        return value if isinstance(value, int | float) else float(value)
    except (TypeError, ValueError) as error:
        raise errors.UserError(f"{what} = {value!r}: not a number") from error


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
