"""Removal of the folders of this machine from what becomes public."""

import pathlib
import re
from typing import Any

_ABSOLUTE = re.compile(r"(?<![\w./~-])[~/](?!/)[^\s,;:'\"()]*/(?=[^\s,;:'\"()])")


def remove(value: Any) -> Any:
    """Return JSON without the folders of absolute paths; their last names stay.

    Args:
      value: Value of JSON: text, number, list or dict.
    """
    if isinstance(value, dict):
        return {key: remove(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [remove(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~")) and "\n" not in value and ", " not in value:
        return pathlib.PurePath(value).name or value
    return _ABSOLUTE.sub("", value)
