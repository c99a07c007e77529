"""A picture of queries beside the images that were ranked first."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

from dinov2_jax.eval import thumbnails

_SIDE = 112  # px of an image
_FRAME = 4
_COLORS = {True: (40, 160, 60), False: (200, 50, 40), None: (90, 90, 90)}


def sheet(
    queries: Any,
    database: Any,
    chosen: Sequence[int],
    ranking: Sequence[Sequence[int]],
    relevant: Sequence[Sequence[bool | None]],
) -> bytes:
    """Draw a row for each query: the query, then images from the most similar on.

    Frames are gray for queries, green for relevant images, red for others, and gray
    where that is unknown.

    Args:
      queries: Source of the queries.
      database: Source of the ranked images.
      chosen: Indices of the queries to show.
      ranking: Indices of the images of each row.
      relevant: Whether each of them is relevant; None where that is unknown.

    Returns:
      A PNG file.
    """
    step = _SIDE + 2 * _FRAME
    columns = 1 + max(map(len, ranking))
    picture = Image.new("RGB", (columns * step, len(chosen) * step), "white")
    draw = ImageDraw.Draw(picture)
    for row, (query, images, right) in enumerate(zip(chosen, ranking, relevant)):
        cells = [(queries, query, None)]
        cells += [(database, i, good) for i, good in zip(images, right)]
        for column, (source, index, good) in enumerate(cells):
            left, top = column * step, row * step
            color = _COLORS[None if good is None else bool(good)]
            draw.rectangle((left, top, left + step - 1, top + step - 1), fill=color)
            corner = (left + _FRAME, top + _FRAME)
            picture.paste(thumbnails.square(source, int(index), _SIDE), corner)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
