"""Pictures of correspondences: patches of two images that are each other's nearest.

As in the paper's figure 10, matches are thinned by non-maximum suppression.

Shapes: h x w patches, D feature width, m matches.
"""

import colorsys
import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dinov2_jax.visualize import panels, views

_IMAGE_SIZE = 560  # approximate longer side of an image, px
_GAP = 24  # px between the images
_SAME_PLACE_DISTANCE = 2  # patches; within this distance a place counts as the same
_POOL = 3  # thinning starts from the best _POOL times as many matches as wanted
_ROWS = 256  # patches that are compared with all others at once; bounds the memory
_LABEL = 36  # px that the number of a match needs beside it
_SUPERSAMPLING = 3  # lines are drawn at this scale and then shrunk: Pillow's are jagged


@dataclasses.dataclass(frozen=True)
class Matches:
    """Pairs of patches, those with the largest lead first.

    Attributes:
      first: int [m, 2], row and column in the first image.
      second: int [m, 2], row and column in the second image.
      scores: float [m], cosine similarities.
      leads: float [m], how far the score is above that of the best other partner that
        either patch has elsewhere in the other image. A patch of blank sky is very
        similar to its match and to a hundred others: by its score it would rank high.
    """

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray
    leads: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index) -> "Matches":
        return Matches(
            self.first[index], self.second[index], self.scores[index], self.leads[index]
        )


def mutual_nearest(
    first: np.ndarray,
    second: np.ndarray,
    masks: Sequence[np.ndarray] | None = None,
) -> Matches:
    """Return all pairs of patches that are each other's nearest by cosine similarity.

    Args:
      first: Patch features of the first image, [h, w, D].
      second: Patch features of the second image, [h, w, D]; h and w may differ.
      masks: bool [h, w] of each image: the patches that take part. None for all.
    """
    if masks is None:
        masks = [np.ones(grid.shape[:2], bool) for grid in (first, second)]
    places = [np.argwhere(mask) for mask in masks]
    if not all(map(len, places)):
        empty = np.zeros((0, 2), int)
        return Matches(empty, empty, np.zeros(0), np.zeros(0))
    similarity = _normalized(first[masks[0]]) @ _normalized(second[masks[1]]).T
    nearest = similarity.argmax(axis=1)
    back = similarity.argmax(axis=0)
    (first_index,) = np.nonzero(back[nearest] == np.arange(len(nearest)))
    second_index = nearest[first_index]
    scores = similarity[first_index, second_index]
    others = np.maximum(
        _best_other_score(similarity, first_index, places[1], second_index),
        _best_other_score(similarity.T, second_index, places[0], first_index),
    )
    leads = scores - others
    order = np.argsort(-leads, kind="stable")
    return Matches(places[0][first_index], places[1][second_index], scores, leads)[
        order
    ]


def _best_other_score(similarity, rows, places, matched):
    """Return the best similarity [m] of m rows that is far from the matched places."""
    best = np.empty(len(rows), similarity.dtype)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        away = np.abs(places[None] - places[matched[part]][:, None]).max(axis=-1)
        far = away > _SAME_PLACE_DISTANCE
        best[part] = np.where(far, similarity[rows[part]], -1.0).max(axis=1)
    return best


def spread(matches: Matches, count: int) -> Matches:
    """Select at most `count` good matches that are far from each other.

    Adaptive non-maximum suppression (Brown, Szeliski and Winder, 2005): matches are
    ranked by the distance to the nearest better one, in the image where it is smaller.
    The best match is always kept.

    Args:
      matches: Matches, the best first.
      count: Number of matches wanted.
    """
    pool = matches[: _POOL * count]
    if len(pool) <= count:
        return pool
    distance = np.minimum(_distances(pool.first), _distances(pool.second))
    better = np.tril(np.ones(distance.shape, bool), k=-1)
    suppression_radius = np.where(better, distance, np.inf).min(axis=1)
    chosen = np.argsort(-suppression_radius, kind="stable")[:count]
    return pool[np.sort(chosen)]


def draw(
    first: views.View, second: views.View, kept: Matches, total: int
) -> Image.Image:
    """Draw two images side by side with lines between their matches.

    Args:
      first: The left image.
      second: The right image.
      kept: Matches to draw, numbered from 1, the best first.
      total: Number of matches before thinning, for the caption.

    Returns:
      The RGB sheet.
    """
    sizes = [panels.shown_size(view.grid, _IMAGE_SIZE) for view in (first, second)]
    width = sizes[0][0] + _GAP + sizes[1][0]
    canvas = Image.new("RGB", (width, max(h for _, h in sizes)), "white")
    offsets = [0, sizes[0][0] + _GAP]
    for view, size, left in zip((first, second), sizes, offsets):
        photograph = panels.photograph(view.pixels, size)
        # Paler, so that the lines stand out.
        pale = Image.blend(photograph, Image.new("RGB", size, "white"), 0.25)
        canvas.paste(pale, (left, 0))
    ends = [
        _centres(places, size, view.grid) + (left, 0)
        for places, size, view, left in zip(
            (kept.first, kept.second), sizes, (first, second), offsets
        )
    ]
    canvas = _with_lines(canvas, *ends)
    titles = Image.new("RGB", (width, panels.HEADER), "white")
    write = ImageDraw.Draw(titles)
    for view, size, left in zip((first, second), sizes, offsets):
        name = panels.shortened(view.name, size[0])
        middle = (left + size[0] / 2, panels.HEADER / 2)
        write.text(middle, name, "black", panels.font(), anchor="mm")
    whole = Image.new("RGB", (width, panels.HEADER + canvas.height), "white")
    whole.paste(titles, (0, 0))
    whole.paste(canvas, (0, panels.HEADER))
    return panels.sheet([[panels.Panel(whole)]], _notes(kept, total))


def _notes(kept: Matches, total: int) -> list[panels.Note]:
    if not len(kept):
        return [panels.Note("No two patches are each other's nearest.")]
    scores = [
        f"{number}:\xa0{score:.2f}\xa0(+{lead:.2f})"  # non-breaking spaces
        for number, (score, lead) in enumerate(zip(kept.scores, kept.leads), start=1)
    ]
    return [
        panels.Note(
            f"{len(kept)} of the {total} pairs of patches that are each other's "
            "nearest by cosine similarity: those with the largest lead over other "
            "places, thinned."
        ),
        panels.Note(f"Similarity and lead by number: {', '.join(scores)}"),
    ]


def _with_lines(canvas: Image.Image, starts: np.ndarray, ends: np.ndarray):
    """Return the canvas with smooth, numbered lines."""
    k = _SUPERSAMPLING
    large = canvas.resize((canvas.width * k, canvas.height * k))
    pen = ImageDraw.Draw(large)
    colors = [_color(i) for i in range(len(starts))]
    pairs = list(zip(starts * k, ends * k, colors))[::-1]  # the best is drawn on top
    for start, end, color in pairs:
        pen.line([*start, *end], "black", width=3 * k)
        pen.line([*start, *end], color, width=2 * k)
    for start, end, color in pairs:
        for x, y in (start, end):
            r = 5 * k
            pen.ellipse((x - r, y - r, x + r, y + r), color, "black", width=k)
    small = large.resize(canvas.size, Image.Resampling.LANCZOS)
    write = ImageDraw.Draw(small)
    for number, places in enumerate(zip(starts, ends), start=1):
        for (x, y), outwards in zip(places, (-1, 1)):
            # Outside the line, except near the edge of the sheet.
            side = outwards if _LABEL < x < canvas.width - _LABEL else -outwards
            write.text(
                (x + 8 * side, y),
                str(number),
                "black",
                panels.font(),
                anchor="rm" if side < 0 else "lm",
                stroke_width=2,
                stroke_fill="white",
            )
    return small


def _color(index: int) -> tuple[int, int, int]:
    """Return a colour; hues in steps of the golden ratio make neighbours differ."""
    hue = (index * 0.6180339887) % 1.0
    value = (1.0, 0.75)[index % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _centres(places: np.ndarray, size: tuple[int, int], grid: tuple[int, int]):
    """Convert rows and columns [m, 2] to x and y of the patches' centres, px."""
    return (places[:, ::-1] + 0.5) * (np.array(size) / np.array(grid[::-1]))


def _normalized(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1.0)


def _distances(places: np.ndarray) -> np.ndarray:
    """Return the distances between places [m, 2] as [m, m], in patches."""
    return np.linalg.norm(places[:, None] - places[None].astype(float), axis=-1)
