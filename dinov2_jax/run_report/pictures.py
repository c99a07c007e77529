"""The pictures of a run, inside its report."""

import io
import pathlib

from PIL import Image

from dinov2_jax import html_page

_LARGEST_FILE = 300_000  # bytes that are taken as they are
_LARGEST_SIDE = 1400  # px of what is written anew
_MOST = 8


def part(folder: pathlib.Path) -> list[str]:
    """Return the section of the PNG files in a run's folder and one below; [] if none.

    Args:
      folder: The run's folder.
    """
    paths = sorted(folder.glob("*.png")) + sorted(folder.glob("*/*.png"))
    if not paths:
        return []
    parts = [html_page.heading("Pictures")]
    for path in paths[:_MOST]:
        name = str(path.relative_to(folder))
        caption = name
        if path.name == "pca.png":
            caption += ": photographs, and the first principal components of patches"
        try:
            picture = _embed(path, name)
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            parts.append(html_page.note(f"{name} cannot be read ({error})."))
            continue
        parts.append(html_page.figure(picture, caption))
    return parts


def _embed(path: pathlib.Path, name: str) -> str:
    """Return a picture; a large one smaller and as JPEG."""
    if path.stat().st_size <= _LARGEST_FILE:
        with Image.open(path) as image:
            image.verify()
        return html_page.image(path.read_bytes(), name)
    with Image.open(path) as image:
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE * 2))
        content = io.BytesIO()
        image.convert("RGB").save(content, "JPEG", quality=85)
    return html_page.image(content.getvalue(), name, kind="jpeg")
