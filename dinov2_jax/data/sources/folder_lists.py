"""Several folders in place of one path: in a text file, or separated by commas."""

import os

from dinov2_jax import errors
from dinov2_jax.data.sources import globbing, manifest


def listed(path: str) -> list[str]:
    """Return the folders that a text file lists, one per line; [] if it lists files.

    Args:
      path: Path of a file; "~" is the home folder.

    Raises:
      UserError: Folders and other paths are mixed.
    """
    given = os.path.abspath(os.path.expanduser(path))
    if os.path.splitext(given)[1].lower() != ".txt" or not os.path.isfile(given):
        return []
    root = os.fsencode(os.path.dirname(given))

    def read(most: int | None) -> list[bytes]:
        lines = manifest.lines(given, most)
        return [os.path.join(root, manifest.bare(root, line)) for line in lines]

    try:
        first = read(manifest.LOOKED_AT)  # a list of files may be very long
        if not first or not all(map(_is_folder, first)):
            return []
        paths = read(None)
    except OSError:
        return []  # opening it as a list of files says why
    for one in paths:
        if not _is_folder(one):
            raise errors.UserError(
                f"{path} lists folders, and {os.fsdecode(one)} is none: list folders "
                "or files, not both"
            )
    return [os.fsdecode(one) for one in paths]


def separated(path: str) -> list[str]:
    """Return the paths that commas separate, all of which exist; [] if it is one."""
    given = os.path.expanduser(path)
    if "," not in given or os.path.exists(given) or globbing.is_pattern(given):
        return []
    parts = [os.path.expanduser(part.strip()) for part in given.split(",")]
    return parts if all(map(os.path.exists, parts)) else []


def without_repeats(paths: list[str], field: str) -> list[str]:
    """Return the paths, each once, whatever links name it.

    Args:
      paths: Paths that exist.
      field: The configuration field to name in messages.

    Raises:
      UserError: A folder is inside of another one, whose images would come twice.
    """
    real = {os.path.realpath(path): path for path in reversed(paths)}
    for inner, given in real.items():
        outer = inner
        while outer != os.path.dirname(outer) and os.path.isdir(inner):
            if os.path.basename(outer).startswith("."):
                break  # not read as a part of the folder that holds it
            outer = os.path.dirname(outer)
            if outer in real:
                raise errors.UserError(
                    f"{field} names {real[outer]} and {given}, which is inside of it "
                    "and would be read twice: leave out one of them"
                )
    return list(reversed(real.values()))


def _is_folder(path: bytes) -> bool:
    try:
        return os.path.isdir(path)
    except ValueError:  # a zero byte
        return False
