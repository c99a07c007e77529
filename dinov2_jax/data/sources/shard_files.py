"""The shard files of a data set: one file, those in a folder, or a pattern."""

import glob
import os
import re

from dinov2_jax import errors
from dinov2_jax.data.sources import extensions, globbing

TAR = re.compile(r"\.tar$", re.IGNORECASE)
COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
# Also as tensorflow-datasets names them: x.array_record-00000-of-00010.
ARRAY_RECORD = re.compile(r"\.array_?record(-\d+-of-\d+)?$", re.IGNORECASE)


def is_array_record(path: str) -> bool:
    """Return whether a file's name is that of an ArrayRecord file."""
    return bool(ARRAY_RECORD.search(path))


def is_tar(path: str) -> bool:
    """Return whether a file's name is that of an uncompressed tar file."""
    return bool(TAR.search(path))


def is_compressed_tar(path: str) -> bool:
    """Return whether a file's name is that of a compressed tar file."""
    return bool(COMPRESSED_TAR.search(path))


def find(path: str, ending: re.Pattern[str], *, what: str, field: str) -> list[str]:
    """Return the absolute paths of shards, sorted.

    Args:
      path: A file, a folder (searched with its sub-folders) or a pattern.
      ending: Ending of the shards' names, for files in a folder.
      what: Name of such files in messages.
      field: The configuration field to name in messages.

    Raises:
      UserError: There are none, or one is missing.
    """
    given = os.path.expanduser(path)
    fix = f"set --config.{field} to a file, a folder or a pattern such as x-{{00..99}}"
    if os.path.isdir(given):
        found = []
        for folder, folders, names in os.walk(given, followlinks=False):
            folders.sort()  # in place, so that os.walk enters them in order
            found += [
                os.path.join(folder, name)
                for name in names
                if ending.search(name) and not name.startswith(".")
            ]
        if not found:
            raise errors.UserError(f"no {what} below {field} = {given}: {fix}")
    elif os.path.exists(given):
        found = [given]
    elif globbing.is_pattern(given):
        found = []
        for one in globbing.expand_braces(given):
            if glob.has_magic(one):
                found += glob.glob(one, recursive=True)
            elif os.path.exists(one):
                found.append(one)
            else:
                raise errors.UserError(
                    f"{one} does not exist, which {field} = {given} names: correct the "
                    "numbers in the braces"
                )
        if not found:
            raise errors.UserError(f"no {what} match {field} = {given}: {fix}")
    else:
        raise errors.UserError(f"{field} = {given} does not exist: {fix}")
    found = sorted({os.path.abspath(one) for one in found}, key=os.fsencode)
    for one in found:
        if not os.path.isfile(one):
            raise errors.UserError(
                f"{one} is not a regular file, though {field} = {given} names it: "
                "leave it out"
            )
    return found


def left_out(path: str, ending: re.Pattern[str]) -> dict[str, int]:
    """Return how many other files with images or shards a folder holds, by extension.

    Args:
      path: The given path; only folders hold others.
      ending: Ending of the shards' names.
    """
    total: dict[str, int] = {}
    for _, _, names in os.walk(os.path.expanduser(path), followlinks=False):
        for name in names:
            if ending.search(name) or name.startswith("."):
                continue
            kind = extensions.of(os.fsencode(name))
            if extensions.is_image(name) or extensions.fix(kind):
                total[kind] = total.get(kind, 0) + 1
    return total


def names(paths: list[str]) -> list[str]:
    """Return names of shards for messages: their paths below the common folder."""
    if len(paths) == 1:
        return [os.path.basename(paths[0])]
    shared = os.path.commonpath(paths)
    return [os.path.relpath(path, shared) for path in paths]
