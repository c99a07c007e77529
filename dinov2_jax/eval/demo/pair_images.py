"""A small retrieval benchmark in the layout of Revisited Oxford, without a download.

Data base: parts of eight photographs under random homographies, and of the right
picture of a stereo pair. Queries: boxes in the photographs as they are, and in the
pair's left picture. What an image of the data base shows of a query is known exactly,
by the homography or by the measured disparity, and makes it easy, hard or junk.
"""

import pathlib
import pickle

import numpy as np
from PIL import Image

from dinov2_jax.data.sources import photos
from dinov2_jax.eval.demo import labelled_images
from dinov2_jax.eval.dense import pairs

_SIDE = 168  # of an image of the data base, px
_VIEWS = 8  # of a photograph
_QUERIES = 4  # of a photograph
# Overlap, as intersection over union, from which on an image is easy, hard or junk.
EASY, HARD, JUNK = 0.45, 0.25, 0.05
_PHOTOGRAPHS = ("astronaut", "camera", "rocket", "china", "flower", "retina")
_TILT = 0.12  # shift of a view's corners, as a share of its side


def write(folder: pathlib.Path) -> None:
    """Write jpg/ and gnd_demo.pkl.

    Args:
      folder: Folder to write into.
    """
    jpg = folder / "jpg"
    jpg.mkdir(parents=True, exist_ok=True)
    named = dict(zip(photos.photograph_names(), photos.load_photographs()))
    images = {name: named[name] for name in _PHOTOGRAPHS}
    images |= dict(zip(("chelsea", "coffee"), photos.load_unseen()))
    left = pairs.read_image(labelled_images.packaged("motorcycle_left.png"))
    database, queries = [], []  # (name, photograph, what is seen), (…, box)
    for index, (name, image) in enumerate(images.items()):
        rng = np.random.default_rng(index)
        for view in range(_VIEWS):
            pixels, seen = _view(image, rng)
            database.append((f"{name}_{view}", name, seen))
            _save(jpg / f"{name}_{view}.jpg", pixels)
        queries += [(name, *q) for q in _queries(image.shape[:2], rng)]
        _save(jpg / f"{name}.jpg", image)
    for view, (pixels, seen) in enumerate(_stereo_views()):
        database.append((f"right_{view}", "left", seen))
        _save(jpg / f"right_{view}.jpg", pixels)
    rng = np.random.default_rng(len(images))
    queries += [("left", *q) for q in _queries(left.shape[:2], rng)]
    _save(jpg / "left.jpg", left)
    truth = [_truth(query, database) for query in queries]
    content = {
        "imlist": [name for name, _, _ in database],
        "qimlist": [name for name, _, _ in queries],
        "gnd": truth,
    }
    (folder / "gnd_demo.pkl").write_bytes(pickle.dumps(content))


def _view(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Look at a part of a photograph from another side.

    Returns:
      uint8 [S, S, 3], and the pixels of the photograph that it shows, bool [H, W].
    """
    height, width = image.shape[:2]
    side = rng.uniform(0.45, 0.75) * min(height, width)
    corner = rng.uniform(_TILT * side, [width - 1.2 * side, height - 1.2 * side])
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    tilted = square + rng.uniform(-_TILT, _TILT, (4, 2))
    corners = np.clip(corner + tilted * side, 0, [width - 1, height - 1])
    matrix = homography(square * _SIDE, corners)
    coefficients = tuple((matrix / matrix[2, 2]).ravel()[:8])
    size = (_SIDE, _SIDE)
    turned = Image.fromarray(image).transform(
        size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    places = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(matrix).T
    places = places[..., :2] / places[..., 2:]
    return np.asarray(turned), ((places >= 0) & (places < _SIDE)).all(axis=-1)


def homography(points: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return the 3 x 3 matrix that takes four points to four others.

    Args:
      points: x and y of the points, [4, 2].
      images: Where they go, [4, 2].
    """
    rows = []
    for (x, y), (u, v) in zip(points, images):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    solved = np.linalg.solve(np.array(rows), np.asarray(images).ravel())
    return np.append(solved, 1.0).reshape(3, 3)


def _stereo_views() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return windows of the right picture, and the left's pixels that they show."""
    right = pairs.read_image(labelled_images.packaged("motorcycle_right.png"))
    disparity = labelled_images.motorcycle_disparity()
    height, width = disparity.shape
    y, x = np.mgrid[:height, :width]
    known = np.isfinite(disparity)
    moved = np.where(known, x - np.where(known, disparity, 0), -1)
    side, views = 240, []
    for top in range(0, height - side + 1, 86):
        for start in range(0, width - side + 1, 100):
            seen = (moved >= start) & (moved < start + side)
            seen &= (y >= top) & (y < top + side)
            window = right[top : top + side, start : start + side]
            small = Image.fromarray(window).resize((_SIDE, _SIDE))
            views.append((np.asarray(small), seen))
    return views


def _queries(
    size: tuple[int, int], rng: np.random.Generator
) -> list[tuple[tuple[int, int, int, int], np.ndarray]]:
    """Draw boxes (left, top, right, bottom); return them and their pixels."""
    height, width = size
    found = []
    for _ in range(_QUERIES):
        side = int(rng.uniform(0.45, 0.7) * min(size))
        left, top = (int(rng.integers(n - side)) for n in (width, height))
        inside = np.zeros(size, bool)
        inside[top : top + side, left : left + side] = True
        found.append(((left, top, left + side, top + side), inside))
    return found


def _truth(query: tuple, database: list[tuple]) -> dict:
    """Return what a query's entry in the ground truth holds."""
    photograph, box, inside = query
    kinds = {"easy": [], "hard": [], "junk": []}
    for index, (_, shown, seen) in enumerate(database):
        if shown != photograph:
            continue
        overlap = (inside & seen).sum() / (inside | seen).sum()
        for kind, least in (("easy", EASY), ("hard", HARD), ("junk", JUNK)):
            if overlap >= least:
                kinds[kind].append(index)
                break
    return {"bbx": list(map(float, box))} | kinds


def _save(path: pathlib.Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, quality=92)
