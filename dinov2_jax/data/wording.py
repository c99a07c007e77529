"""What sources say about themselves and about what is missing."""

from collections.abc import Mapping, Sequence

SET_DATA = (
    "set --config.data.path=/path/to/images, or --config.data.source=photos for the "
    "embedded photographs"
)


def set_path(field: str) -> str:
    """The fix for a field that names no images."""
    if field == "data.path":
        return SET_DATA
    if field.startswith(("data.", "evaluation.")):
        return f"set --config.{field}=/path/to/images"
    return "name images"


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
