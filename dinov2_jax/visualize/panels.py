"""Captioned panels on a white sheet, and colours for numbers; drawn with Pillow.

matplotlib would be one more dependency, and resamples pictures that are shown here
pixel for pixel.

Shapes: H x W pixels.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinov2_jax import files

GAP = 6  # px between panels
FONT_SIZE = 16
HEADER = FONT_SIZE + 2 * GAP  # height of a line of titles, px
_BAR = (160, 12)  # size of a colour bar, px
# From black over purple, red and orange to pale yellow: brightness always increases, so
# that the map also works in grey and for colour-blind readers.
_HEAT = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ],
    np.float64,
)


@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture at its final size, and the title above it."""

    image: Image.Image
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Note:
    """A line below the panels, with an optional colour bar between two labels."""

    text: str
    bar: tuple[str, str] | None = None


def sheet(
    rows: Sequence[Sequence[Panel | None]], notes: Sequence[Note] = ()
) -> Image.Image:
    """Arrange panels in rows and columns on white.

    Args:
      rows: Rows of panels, None for a gap. A column is as wide as its widest panel, a
        row as high as its highest, plus a line if one of them has a title.
      notes: Lines below the panels, wrapped to the width of the sheet.

    Returns:
      The RGB sheet.
    """
    columns = max(len(row) for row in rows)
    widths = [0] * columns
    for row in rows:
        for column, panel in enumerate(row):
            if panel:
                widths[column] = max(widths[column], panel.image.width)
    width = GAP + sum(w + GAP for w in widths)
    lines = [line for note in notes for line in _lines(note, width - 2 * GAP)]
    heights = []
    for row in rows:
        titled = any(panel and panel.title for panel in row)
        highest = max(panel.image.height for panel in row if panel)
        heights.append((HEADER if titled else 0, highest))
    height = sum(header + highest + GAP for header, highest in heights)
    canvas = Image.new("RGB", (width, height + HEADER * len(lines)), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for row, (header, highest) in zip(rows, heights):
        left = GAP
        for panel, column_width in zip(row, widths):
            if panel:
                middle = (left + panel.image.width / 2, top + header / 2)
                title = shortened(panel.title, panel.image.width)
                draw.text(middle, title, "black", font(), anchor="mm")
                canvas.paste(panel.image, (left, top + header))
            left += column_width + GAP
        top += header + highest + GAP
    for line in lines:
        _draw_note(canvas, draw, line, top)
        top += HEADER
    return canvas


def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of all text."""
    return ImageFont.load_default(FONT_SIZE)


def shortened(text: str, width: int) -> str:
    """Cut the middle of a text to fit a width in px; return "" if nothing fits."""
    if font().getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        cut = text[: (kept + 1) // 2] + "..." + text[len(text) - kept // 2 :]
        if font().getlength(cut) <= width:
            return cut
    return ""


def _lines(note: Note, width: int) -> Iterator[Note]:
    """Wrap a note to lines of at most a width in px; the bar ends the last one.

    Lines are not broken at "\\xa0".
    """
    reserved = 0.0
    if note.bar:
        reserved = _BAR[0] + 5 * GAP + sum(map(font().getlength, note.bar))
    line = ""
    words = [word.replace("\xa0", " ") for word in note.text.split(" ") if word]
    for word in words:
        longer = f"{line} {word}".strip()
        if line and font().getlength(longer) > width:
            yield Note(line)
            longer = word
        line = longer
    if line and note.bar and font().getlength(line) + reserved > width:
        yield Note(line)
        line = ""
    yield Note(line, note.bar)


def _draw_note(canvas, draw, note, top):
    middle = top + HEADER / 2
    draw.text((GAP, middle), note.text, "black", font(), anchor="lm")
    if not note.bar:
        return
    low, high = note.bar
    left = GAP + (font().getlength(note.text) + 2 * GAP if note.text else 0)
    draw.text((left, middle), low, "black", font(), anchor="lm")
    left = round(left + font().getlength(low) + GAP)
    ramp = np.broadcast_to(np.linspace(0, 1, _BAR[0]), _BAR[::-1])
    canvas.paste(Image.fromarray(heat(ramp)), (left, round(middle - _BAR[1] / 2)))
    draw.text((left + _BAR[0] + GAP, middle), high, "black", font(), anchor="lm")


def columns_for(count: int) -> int:
    """Return how many of `count` panels go in a row, for a sheet wider than high."""
    return min(count, max(1, round(math.sqrt(1.6 * count))))


def wrapped(items: Sequence, columns: int) -> list[list]:
    """Split items into rows of `columns`."""
    return [list(items[i : i + columns]) for i in range(0, len(items), columns)]


def heat(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Map numbers to colours, the larger the brighter.

    Args:
      values: Numbers [H, W].
      low: Number with the darkest colour, as have all smaller ones.
      high: Number with the brightest colour, as have all larger ones.

    Returns:
      uint8 [H, W, 3].
    """
    span = high - low if high > low else 1.0
    scaled = np.clip((np.asarray(values, np.float64) - low) / span, 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(_HEAT))
    colors = [np.interp(scaled, stops, _HEAT[:, c]) for c in range(3)]
    return np.round(np.stack(colors, axis=-1)).astype(np.uint8)


def shown_size(grid: tuple[int, int], side: int) -> tuple[int, int]:
    """Return a (width, height) near `side` px in which patches are equal squares.

    Args:
      grid: Rows and columns of patches, (h, w).
      side: Wanted longer side, px.
    """
    pixels = max(1, round(side / max(grid)))
    return grid[1] * pixels, grid[0] * pixels


def photograph(pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resize uint8 [H, W, 3] smoothly to a size (width, height)."""
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def patches(colors: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Resize uint8 [h, w, 3] to a size (width, height), each patch in one colour.

    This shows the patches and suggests no detail that is not there.
    """
    return Image.fromarray(colors).resize(size, Image.Resampling.NEAREST)


def save(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a PNG atomically.

    Raises:
      UserError: The file cannot be written.
    """
    with files.open_new(path) as file:
        image.save(file, format="PNG")
