"""Descriptions of sources, and their error messages."""

import re
from collections.abc import Mapping, Sequence

SET_DATA = (
    "set --config.data.path=/path/to/images, or --config.data.source=photos for the "
    "embedded photographs"
)


_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Return whether a path is meant as a URL."""
    return bool(_URL.match(path))


def set_path(field: str) -> str:
    """Return the fix for a field that names no images."""
    if field == "data.path":
        return SET_DATA
    if field.startswith(("data.", "evaluation.")):
        return f"set --config.{field}=/path/to/images"
    return "name images: a folder, a pattern, a list or shards"


def url_problem(given: str, what: str) -> str:
    """Return why a URL in place of a path cannot be read, and the fix.

    Args:
      given: The URL.
      what: Name of the setting that holds it, such as "data.path".
    """
    return (
        f"{what} = {given} is a URL, but only files are read: mount it (gcsfuse, "
        "mountpoint-s3) or copy it (gcloud storage rsync, aws s3 sync), and name its "
        "folder"
    )


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun: `1 image`, `2,000 images`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def described(
    number: int,
    where: str,
    *,
    skipped: Mapping[str, int],
    left_out: str,
    first: Sequence[str],
) -> str:
    """Return one line: the number of images, location, skipped files, first names.

    Args:
      number: Number of images.
      where: Their location, such as "in 3 folders".
      skipped: Number of skipped files for each reason.
      left_out: Numbers of files that are not read, such as "3 .txt"; "" for none.
      first: Names of the first images.
    """
    text = f"{counted(number, 'image')} {where}".rstrip()
    total = sum(skipped.values())
    if total:
        reasons = ", ".join(f"{count:,} x {why}" for why, count in skipped.items())
        text += f" ({total:,} skipped: {reasons})"
    if left_out:
        text += f" (left out: {left_out})"
    if first:
        text += f", first {', '.join(first)}"
    return printable(text)


def printable(text: str) -> str:
    """Escape what a name may contain: line ends, terminal escapes, odd bytes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
