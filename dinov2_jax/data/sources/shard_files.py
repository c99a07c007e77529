"""The shard files of a data set: one file, those in a folder, or a pattern."""

import collections
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
      path: A file, a folder (searched with its sub-folders, of which links are
        followed) or a pattern.
      ending: Ending of the shards' names, for files in a folder.
      what: Name of such files in messages.
      field: The configuration field to name in messages.

    Raises:
      UserError: There are none, one is missing, or a folder cannot be listed.
    """
    given = os.path.expanduser(path)
    fix = f"set --config.{field} to a file, a folder or a pattern such as x-{{00..99}}"
    if os.path.isdir(given):
        listed, unreadable = _walk(given)
        if unreadable:
            raise errors.UserError(
                f"cannot list {unreadable[0]} below {field} = {given}: change its "
                f"permissions, or name the {what} with a pattern"
            )
        found = [path for path in listed if ending.search(os.path.basename(path))]
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
    given = os.path.expanduser(path)
    if not os.path.isdir(given):
        return total
    for name in map(os.path.basename, _walk(given)[0]):
        if ending.search(name):
            continue
        kind = extensions.of(os.fsencode(name))
        if extensions.is_image(name) or extensions.fix(kind):
            total[kind] = total.get(kind, 0) + 1
    return total


def _walk(root: str) -> tuple[list[str], list[str]]:
    """List a folder with its sub-folders and those that links lead to, each once.

    Names that begin with a dot are skipped, as is lost+found of a file system. A folder
    that is below the root has its own path, also if links lead to it.

    Returns:
      Paths of the files, and of the folders that cannot be listed.
    """
    found: list[str] = []
    unreadable: list[str] = []
    seen: set[tuple[int, int]] = set()  # (device, inode), to end loops of links
    below, links = [root], collections.deque[str]()
    while below or links:
        folder = below.pop() if below else links.popleft()
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            unreadable.append(folder)
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "lost+found":
                continue
            if not _is_folder(entry):
                found.append(entry.path)
            elif entry.is_symlink():
                links.append(entry.path)
            else:
                below.append(entry.path)
    return found, unreadable


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def names(paths: list[str]) -> list[str]:
    """Return names of shards for messages: their paths below the common folder."""
    if len(paths) == 1:
        return [os.path.basename(paths[0])]
    shared = os.path.commonpath(paths)
    return [os.path.relpath(path, shared) for path in paths]
