"""Removal of the folders of this machine from what becomes public."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

_ABSOLUTE = re.compile(r"(?<![\w./~-])[~/](?!/)[^\s,;:'\"()]*/(?=[^\s,;:'\"()])")
_SEVERAL = re.compile(r"\n|[,;] ?[~/]")  # paths in one text
_FILE_URL = re.compile(r"\bfile://[\w.-]*(?=[~/])")


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
    value = _FILE_URL.sub("", value)
    if value.startswith(("/", "~")) and not _SEVERAL.search(value):
        return pathlib.PurePath(value).name or value
    return _ABSOLUTE.sub("", value)


def remove_known(text: str, content: Any) -> str:
    """Return a text without the folders of paths that are values of some JSON.

    `remove` cannot tell in a text where a path ends that has spaces or commas.

    Args:
      text: A text that may name the paths.
      content: Value of JSON: text, number, list or dict.
    """
    for path in sorted(_texts(content), key=len, reverse=True):
        if remove(path) != path:
            text = text.replace(path, remove(path))
    return remove(text)


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list | tuple):
        parts = content.values() if isinstance(content, dict) else content
        for part in parts:
            yield from _texts(part)
