"""A picture of patch features: photographs beside three principal components.

As in the paper's figure 1: the components are those of all images together, so one
colour means one thing in every row. Without the paper's removal of the background.

Shapes: n images, h x w patches, D feature width.
"""

import os
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_CELL = 224  # shown side of an image, px
_GAP = 6
_FONT_SIZE = 16


def principal_components(features: np.ndarray, *, count: int = 3) -> np.ndarray:
    """Projects features on their first principal components.

    Args:
      features: [n, D].
      count: components wanted.

    Returns:
      float64 [n, count], largest variance first, the sign such that the skew of each
      column is positive; zeros where the features have fewer dimensions.
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


def pca_colors(patch_features: np.ndarray) -> np.ndarray:
    """The first three principal components of patch features as colours.

    Args:
      patch_features: [n, h, w, D].

    Returns:
      uint8 [n, h, w, 3]; each component runs from its 2nd percentile (0) to its 98th
      (255) over all images, so that a few outliers do not grey out the rest. Constant
      features are mid-grey.
    """
    patch_features = np.asarray(patch_features)
    components = principal_components(
        patch_features.reshape(-1, patch_features.shape[-1])
    )
    low, high = np.percentile(components, (2, 98), axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = np.where(high > low, (components - low) / span, 0.5)
    colors = np.round(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)
    return colors.reshape(*patch_features.shape[:3], 3)


def pca_picture(
    images: np.ndarray,
    features: Mapping[str, np.ndarray],
    path: str | os.PathLike,
) -> None:
    """Writes a PNG: a row per image, the photograph and then a column per title.

    Args:
      images: uint8 [n, H, W, 3].
      features: title -> patch features [n, h, w, D]; the grids may differ.
      path: where to write the picture.

    Raises:
      ValueError: a grid that is not [n, h, w, D] with n the number of images.
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
    cell_width, cell_height = round(image_width * scale), round(image_height * scale)
    columns = [("photograph", images, Image.Resampling.BICUBIC)]
    columns += [
        # Nearest, so that one sees the patches and no detail that is not there.
        (title, pca_colors(grid), Image.Resampling.NEAREST)
        for title, grid in features.items()
    ]

    font = ImageFont.load_default(_FONT_SIZE)
    header = _FONT_SIZE + 2 * _GAP
    canvas = Image.new(
        "RGB",
        (
            _GAP + len(columns) * (cell_width + _GAP),
            header + count * (cell_height + _GAP),
        ),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    for column, (title, pictures, resample) in enumerate(columns):
        left = _GAP + column * (cell_width + _GAP)
        middle = (left + cell_width / 2, header / 2)
        draw.text(middle, title, fill="black", font=font, anchor="mm")
        for row, picture in enumerate(pictures):
            shown = Image.fromarray(picture).resize((cell_width, cell_height), resample)
            canvas.paste(shown, (left, header + row * (cell_height + _GAP)))
    canvas.save(path, format="PNG")
