"""Folders that the tasks read, made of what scikit-image and scikit-learn carry.

Nothing is downloaded. Textures and the stereo pair are divided so that no pixel serves
both to fit a head and to test it; digits are divided by their order, so by writers.
"""

import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.eval.dense import dense_pictures, pairs

TEXTURES = ("brick", "grass", "gravel")  # in the order of their labels
_SIDE = 144  # of an image of textures, px
_TRAIN_DIGITS = 1197  # of 1,797
# Columns of the 512 px of a texture, px: those of a use of `data.sources.photos`.
_STRIPS = {
    "train": ((0, 128), (192, 320), (384, 512)),
    "val": ((128, 192), (320, 384)),
}
_IMAGES = {"train": 24, "val": 8}
_VOID = 255
# Of the stereo pair: focal length in px, distance of the cameras in mm, offset in px.
_FOCAL, _BASELINE, _OFFSET = 994.978, 193.001, 31.086
# Columns of the left picture, px, and where its windows of a side start.
_DEPTH_COLUMNS = {"train": (0, 432), "test": (456, 741)}
_DEPTH_SIDE = {"train": 216, "test": 132}


def packaged(name: str) -> pathlib.Path:
    """Return the path of a file in scikit-image's data folder.

    Raises:
      UserError: It is not there.
    """
    spec = importlib.util.find_spec("skimage")  # finds without importing
    path = pathlib.Path(spec.origin if spec and spec.origin else ".").parent / "data"
    if not (path / name).is_file():
        raise errors.UserError(
            f"scikit-image has no {name}: pip install the version in requirements.txt"
        )
    return path / name


def write_digits(folder: pathlib.Path) -> None:
    """Write scikit-learn's digits, 8 x 8 px, as train/CLASS and val/CLASS.

    Args:
      folder: Folder to write into.
    """
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    for index, (pixels, label) in enumerate(zip(images.reshape(-1, 8, 8), labels)):
        part = "train" if index < _TRAIN_DIGITS else "val"
        path = folder / part / str(label) / f"{index:04}.png"
        _save(path, (pixels * 15.9).astype(np.uint8))


def write_masks(folder: pathlib.Path) -> None:
    """Write images of three textures, one of them in the shape of a horse.

    Every region gets the same contrast and a brightness by chance, so that only the
    texture tells its class. Masks have a palette and a border of 255, as VOC's.

    Args:
      folder: Folder to write into; train/, val/ and classes.txt.
    """
    pictures = [pairs.read_image(packaged(f"{name}.png"))[..., 0] for name in TEXTURES]
    horse = pairs.read_image(packaged("horse.png"))[..., 0] < 128
    for part, count in _IMAGES.items():
        for index in range(count):
            rng = np.random.default_rng((part == "val", index))
            labels = _labels(horse, rng)
            image = np.choose(
                labels, [_texture(picture, part, rng) for picture in pictures]
            )
            _save(folder / part / "images" / f"{index:02}.png", image)
            mask = dense_pictures.palette_image(_with_border(labels), 256)
            path = folder / part / "masks" / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)
    (folder / "classes.txt").write_text("\n".join(TEXTURES) + "\n")


def _labels(horse: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a horse and a disc on a ground, each of another class, uint8 [S, S]."""
    classes = rng.permutation(len(TEXTURES)).astype(np.uint8)
    labels = np.full((_SIDE, _SIDE), classes[0], np.uint8)
    y, x = np.mgrid[:_SIDE, :_SIDE]
    centre, radius = rng.uniform(0.2, 0.8, 2) * _SIDE, rng.uniform(0.2, 0.3) * _SIDE
    labels[np.hypot(y - centre[0], x - centre[1]) < radius] = classes[1]
    width = int(rng.uniform(0.75, 0.95) * _SIDE)
    height = width * horse.shape[0] // horse.shape[1]
    shape = np.asarray(Image.fromarray(horse).resize((width, height)))
    if rng.random() < 0.5:
        shape = shape[:, ::-1]
    top, left = (int(rng.integers(_SIDE - n + 1)) for n in shape.shape)
    labels[top : top + height, left : left + width][shape] = classes[2]
    return labels


def _texture(picture: np.ndarray, part: str, rng: np.random.Generator) -> np.ndarray:
    """Return a square of a texture, mirrored where its strip ends, uint8 [S, S]."""
    strips = _STRIPS[part]
    start, end = strips[rng.integers(len(strips))]
    top = rng.integers(len(picture) - _SIDE + 1)
    strip = picture[top : top + _SIDE, start:end].astype(np.float32)
    wide = np.pad(strip, ((0, 0), (0, _SIDE - strip.shape[1])), mode="symmetric")
    wide = (wide - wide.mean()) / wide.std() * 40 + rng.uniform(90, 165)
    return np.clip(wide, 0, 255).astype(np.uint8)


def _with_border(labels: np.ndarray) -> np.ndarray:
    """Return labels with 255 where a neighbouring pixel has another one."""
    border = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels.astype(int), axis=axis) != 0
        padding = [(0, 0), (0, 0)]
        for side in ((1, 0), (0, 1)):
            padding[axis] = side
            border |= np.pad(differs, padding)
    return np.where(border, np.uint8(_VOID), labels)


def write_depth(folder: pathlib.Path) -> None:
    """Write windows of the left picture of a stereo pair with measured depth.

    Windows to learn from are left of those to test on.

    Args:
      folder: Folder to write into; train/ and test/, depth in metres as npy.
    """
    image = pairs.read_image(packaged("motorcycle_left.png"))
    depth = motorcycle_depth()
    for part, (start, end) in _DEPTH_COLUMNS.items():
        side = _DEPTH_SIDE[part]
        step = side // 2 if part == "train" else side
        for top in range(0, len(image) - side + 1, step):
            for left in range(start, end - side + 1, step):
                box = (slice(top, top + side), slice(left, left + side))
                name = f"{top:03}_{left:03}"
                _save(folder / part / "images" / f"{name}.png", image[box])
                path = folder / part / "depth" / f"{name}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, depth[box])


def write_images(folder: pathlib.Path, images: Sequence[np.ndarray]) -> None:
    """Write images, uint8 [H, W, 3] each, as PNG files.

    Args:
      folder: Folder to write into.
      images: The images.
    """
    for index, image in enumerate(images):
        _save(folder / f"{index}.png", image)


def motorcycle_disparity() -> np.ndarray:
    """Return how far each pixel of the left picture moves, px; inf where unknown."""
    with np.load(packaged("motorcycle_disp.npz"), allow_pickle=False) as file:
        return file["arr_0"]


def motorcycle_depth() -> np.ndarray:
    """Return the depth of the left picture in metres; 0 where unknown."""
    depth = _BASELINE * _FOCAL / (motorcycle_disparity() + _OFFSET) / 1000
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def _save(path: pathlib.Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert("RGB").save(path)
