"""Removal of the folders of this machine from what becomes public."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

_ABSOLUTE = re.compile(r"(?<![\w./~-])[~/](?!/)[^\s,;:'\"()]*/(?=[^\s,;:'\"()])")
# The start of a path in a text.
_START = re.compile(r"(?:^|(?<=[\s:'\"(,;=]))(?:/(?![/\s])|~(?=[/\w]))")
_FILE_URL = re.compile(r"\bfile://[\w.-]*(?=[~/])")


def remove(value: Any) -> Any:
    """Return JSON without the folders of absolute paths; their last names stay.

    Of a text with one path, all is removed from its start to the last slash, because
    the end of a path with spaces or commas cannot be detected.

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
    starts = [found.start() for found in _START.finditer(value)]
    if len(starts) != 1 or "\n" in value or "://" in value:
        return remove_from_prose(value)
    before, path = value[: starts[0]], value[starts[0] :]
    return before + (pathlib.PurePath(path).name or path)


def remove_from_prose(text: str) -> str:
    """Return a text without the folders of absolute paths that have no spaces."""
    return _ABSOLUTE.sub("", _FILE_URL.sub("", text))


def remove_known(text: str, content: Any) -> str:
    """Return a text without the folders of paths that are values of some JSON.

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
