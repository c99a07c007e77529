"""Config files and their overrides, in the form that `dinov2_jax.main` accepts.

The flags of ml_collections stop at the first bad value and do not say what is expected.
"""

import ast
import contextlib
import importlib.machinery
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

from dinov2_jax import configs, errors
from dinov2_jax.config import checking, converted_config, flattening


def read(path: str, overrides: Sequence[str]) -> Any:
    """Read a config file, apply overrides and check the result.

    Args:
      path: The name of a preset, or the path of a Python file with `get_config()`,
        of a run's config.json or of a YAML file of the reference. What follows a colon
        is the argument of `get_config`.
      overrides: Arguments of the form "--config.SECTION.FIELD=VALUE".

    Raises:
      UserError: The file, a field or a value is invalid.
    """
    config = load(path)
    apply(config, overrides)
    checking.check(config)
    return config


def load(path: str) -> Any:
    """Return the config of a file as it is; see `read`.

    Args:
      path: The name of a preset, or a path.

    Raises:
      UserError: The file is no config.
    """
    name, *argument = path.split(":", 1)
    file = configs.find(name)
    if converted_config.is_convertible(file):
        return converted_config.get_config(str(file))
    try:
        # A loader of its own, as a name without .py would have none.
        loader = importlib.machinery.SourceFileLoader(file.stem, str(file))
        spec = importlib.util.spec_from_loader(file.stem, loader)
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        config = module.get_config(*argument)
        if not hasattr(config, "copy_and_resolve_references"):
            kind = type(config).__name__
            raise TypeError(f"get_config() returned {kind}, not a ConfigDict")
        return config
    except errors.UserError:
        raise
    except Exception as error:
        raise errors.UserError(
            f"{path} is not a config ({type(error).__name__}: {error}): it needs a "
            "function get_config() as in configs/default.py"
        ) from error


def presets() -> dict[str, Any]:
    """Return the presets that need no argument, by name."""
    found = {}
    for name in configs.names():
        with contextlib.suppress(errors.UserError):
            found[name] = load(name)
    return found


def apply(config: Any, overrides: Sequence[str]) -> None:
    """Apply overrides to a config in place; see `read`."""
    known = flattening.flatten(config)
    problems = []
    for override in overrides:
        match = re.fullmatch(r"--?config\.([\w.]+)=(.*)", override, re.DOTALL)
        if not match:
            problems.append(
                f"unknown argument {override}: override a field with "
                "--config.SECTION.FIELD=VALUE"
            )
            continue
        name, text = match.groups()
        if name not in known:
            problems.append(flattening.unknown_field(name, known))
            continue
        section, _, field = name.rpartition(".")
        holder = config
        for part in section.split(".") if section else ():
            holder = holder[part]
        try:
            holder[field] = _value(text, known[name])
        except (KeyError, ValueError, SyntaxError, TypeError):
            problems.append(
                f"--config.{name}={text}: not a number"
                if known[name] is None
                else f"--config.{name}={text}: not a {type(known[name]).__name__} like "
                f"{known[name]!r}"
            )
    if problems:
        raise errors.UserError("; ".join(problems))


def _value(text: str, default: Any) -> Any:
    """Convert a text to the type of the default."""
    if isinstance(default, bool):
        return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
    if isinstance(default, tuple):
        value = ast.literal_eval(text)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return float(text) if default is None else type(default)(text)
