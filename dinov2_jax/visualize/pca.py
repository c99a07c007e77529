"""Pictures of patch features: photographs beside three principal components.

As in the paper's figure 1, the components are computed from all images together, so
that a colour means the same everywhere. Optionally the background is removed: patches
with a negative first component are left out, and a second PCA is made of the rest.

Shapes: n images, h x w patches, D feature width.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from dinov2_jax.visualize import panels, views

_CELL = 224  # longer side of an image in a table, px
_SHOWN = 336  # approximate longer side of a view, px
_BACKGROUND = 255


def principal_components(features: np.ndarray, *, count: int = 3) -> np.ndarray:
    """Project features on their first principal components.

    Args:
      features: Features [n, D].
      count: Number of components.

    Returns:
      float64 [n, count], largest variance first, with signs that make the skew of each
      column positive; zeros where the features have fewer dimensions.
    """
    features = np.asarray(features, np.float64)
    centred = features - features.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
    projected = centred @ vectors[:, ::-1][:, :count]
    # Directions without variance are rounding noise: scaled up, they would look real.
    alive = values[::-1][:count] > max(values[-1], 0.0) * 1e-10
    projected = np.where(alive, projected, 0.0)
    # An eigenvector's sign is arbitrary and differs between linear algebra libraries.
    skew = (projected**3).sum(axis=0)
    projected = projected * np.where(skew < 0, -1.0, 1.0)
    missing = count - projected.shape[1]
    return np.pad(projected, ((0, 0), (0, missing)))


def joint_colors(
    grids: Sequence[np.ndarray], masks: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """Turn the first three principal components of patch features into colours.

    Args:
      grids: [h, w, D] per image; h and w may differ.
      masks: bool [h, w] per image: the patches that take part. None for all.

    Returns:
      uint8 [h, w, 3] per image; each component runs from its 2nd percentile (0) to its
      98th (255) over all images, so that a few outliers do not grey out the rest.
      Constant features are mid-grey, patches that take no part white.
    """
    if masks is None:
        masks = [np.ones(grid.shape[:2], bool) for grid in grids]
    chosen = np.concatenate([grid[mask] for grid, mask in zip(grids, masks)])
    colors = [np.full((*mask.shape, 3), _BACKGROUND, np.uint8) for mask in masks]
    if not len(chosen):
        return colors
    components = principal_components(chosen)
    low, high = np.percentile(components, (2, 98), axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = np.where(high > low, (components - low) / span, 0.5)
    drawn = np.round(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)
    ends = np.cumsum([mask.sum() for mask in masks])[:-1]
    for image, mask, part in zip(colors, masks, np.split(drawn, ends)):
        image[mask] = part
    return colors


def pca_colors(patch_features: np.ndarray) -> np.ndarray:
    """Apply `joint_colors` to images of one shape: [n, h, w, D] -> [n, h, w, 3]."""
    return np.stack(joint_colors(list(np.asarray(patch_features))))


def foreground(grids: Sequence[np.ndarray], *, flip: bool = False) -> list[np.ndarray]:
    """Separate objects from their background by the first component of all images.

    The paper keeps the patches where it is positive. Its sign is arbitrary, so here the
    foreground is the side that has less of the images' borders.

    Args:
      grids: [h, w, D] per image; h and w may differ.
      flip: Whether to take the other side.

    Returns:
      bool [h, w] per image, true in the foreground.
    """
    first = principal_components(
        np.concatenate([grid.reshape(-1, grid.shape[-1]) for grid in grids]), count=1
    )[:, 0]
    shapes = [grid.shape[:2] for grid in grids]
    ends = np.cumsum([h * w for h, w in shapes])[:-1]
    maps = [part.reshape(shape) for part, shape in zip(np.split(first, ends), shapes)]
    border = np.concatenate([np.sign(part[_is_border(part.shape)]) for part in maps])
    if (border.mean() > 0) != flip:
        return [part < 0 for part in maps]
    return [part > 0 for part in maps]


def _is_border(shape: tuple[int, int]) -> np.ndarray:
    border = np.ones(shape, bool)
    border[1:-1, 1:-1] = False
    return border


def pca_picture(
    images: np.ndarray,
    features: Mapping[str, np.ndarray],
    path: str | os.PathLike,
) -> None:
    """Write a PNG with a row per image: the photograph, then a column per title.

    Args:
      images: uint8 [n, H, W, 3].
      features: Patch features [n, h, w, D] by title; the grids may differ.
      path: Path of the picture.

    Raises:
      ValueError: A grid is not [n, h, w, D] with n the number of images.
      UserError: The picture cannot be written.
    """
    images = np.asarray(images)
    count, image_height, image_width = images.shape[:3]
    for title, grid in features.items():
        if np.ndim(grid) != 4 or len(grid) != count:
            raise ValueError(
                f"patch features {title!r} have shape {np.shape(grid)}; "
                f"expected [{count}, h, w, D]"
            )
    scale = _CELL / max(image_height, image_width)
    size = (round(image_width * scale), round(image_height * scale))
    columns = {"photograph": [panels.photograph(x, size) for x in images]}
    for title, grid in features.items():
        columns[title] = [panels.patches(x, size) for x in pca_colors(grid)]
    rows = [
        [
            panels.Panel(shown[row], "" if row else title)
            for title, shown in columns.items()
        ]
        for row in range(count)
    ]
    panels.save(panels.sheet(rows), path)


def draw(
    seen: Sequence[views.View], *, masks: Sequence[np.ndarray] | None = None
) -> Image.Image:
    """Draw a sheet of photographs, each beside its principal components.

    Args:
      seen: Views of any shapes.
      masks: bool [h, w] per view, its foreground; adds a column with its own PCA.
    """
    grids = [view.patches for view in seen]
    columns = [("all patches", joint_colors(grids))]
    if masks is not None:
        columns.append(("the foreground", joint_colors(grids, masks)))
    entries = []
    for number, view in enumerate(seen):
        size = panels.shown_size(view.grid, _SHOWN)
        entry = [panels.Panel(panels.photograph(view.pixels, size), view.name)]
        for title, colors in columns:
            entry.append(panels.Panel(panels.patches(colors[number], size), title))
        entries.append(entry)
    # Few images are stacked; many also go side by side.
    side_by_side = max(1, panels.columns_for(len(seen)) // (1 + len(columns)))
    rows = [sum(row, []) for row in panels.wrapped(entries, side_by_side)]
    text = "Red, green, blue: principal components 1, 2, 3 of the patch features"
    text += f" of all {len(seen)} images together." if len(seen) > 1 else "."
    if masks is not None:
        text += " Foreground: one side of the first component; the rest is white."
    return panels.sheet(rows, [panels.Note(text)])
