"""What sources say about themselves and about what is missing."""

import re
from collections.abc import Mapping, Sequence

SET_DATA = (
    "set --config.data.path=/path/to/images, or --config.data.source=photos for the "
    "embedded photographs"
)


_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_url(path: str) -> bool:
    """Whether a path is meant as a URL."""
    return bool(_URL.match(path))


def set_path(field: str) -> str:
    """The fix for a field that names no images."""
    if field == "data.path":
        return SET_DATA
    if field.startswith(("data.", "evaluation.")):
        return f"set --config.{field}=/path/to/images"
    return "name images: a folder, a pattern, a list or shards"


def url_problem(said: str, what: str) -> str:
    """Why a URL in the place of a path cannot be read, and the fix.

    Args:
      said: The URL.
      what: Names the place, such as "data.path".
    """
    return (
        f"{what} = {said} is a URL, and only files are read: mount it (gcsfuse, "
        "mountpoint-s3) or copy it (gcloud storage rsync, aws s3 sync), and name its "
        "folder"
    )


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def described(
    number: int,
    where: str,
    *,
    skipped: Mapping[str, int],
    first: Sequence[str],
) -> str:
    """One line: how many images, where, what was skipped and why, the first names.

    Args:
      number: of images.
      where: such as "in 3 folders".
      skipped: how many for each reason.
      first: names.
    """
    text = f"{counted(number, 'image')} {where}".rstrip()
    total = sum(skipped.values())
    if total:
        reasons = ", ".join(f"{count:,} x {why}" for why, count in skipped.items())
        text += f" ({total:,} skipped: {reasons})"
    if first:
        text += f", first {', '.join(first)}"
    # A name may hold anything, such as a new line or an escape of a terminal.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
