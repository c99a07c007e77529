"""The embedded data set: tiles of the photographs in scikit-image and scikit-learn.

Both packages carry real photographs inside their wheels, so this source needs neither
a download nor a folder. The label of a tile is the photograph it comes from.

Every photograph is divided into columns of 64 px, whose uses repeat every six columns:
train, train, val, train, train, test. A pixel belongs to one column, hence to one use:

* "train": windows for pretraining, 128 px high and as wide as a run of neighbouring
  train columns (128 px, or 64 to 127 px where the photograph ends after one), one
  every `WINDOW_STRIDE` px downwards. Windows overlap each other, and never reach into
  a held-out column, because a run ends where a held-out column begins.
* "bank": the 64-px tiles of the train columns, unchanged, as references for k-NN.
* "val" and "test": the 64-px tiles of the held-out columns, `RENDERINGS` times each,
  every time with another crop, flip and colour jitter, which depend only on the
  index. Settings may be chosen on "val"; none was ever chosen on "test".

Two photographs are in no split; pictures of learned features use them. Not used from
the wheels: drawings, text, charts, and the right picture of the stereo pair (it
shows the held-out part of the left one).
"""

import functools
import importlib.util
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.augment import crop_boxes, on_host, policies, resize
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, index_cache, messages

TILE = 64  # px
WINDOW = 128  # px
WINDOW_STRIDE = 32  # px
RENDERINGS = 4  # renderings of each held-out tile
RENDER_SCALE = (0.4, 1.0)  # share of the tile's area that a rendering shows
SPLITS = ("train", "bank", "val", "test")
_COLUMNS = ("train", "train", "val", "train", "train", "test")
_MAX_SIDE = 800  # px; larger photographs are scaled to _REDUCED_SIDE, for balance
_REDUCED_SIDE = 512

_FILES = {
    "skimage": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "cell.png",
        "clock_motion.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
# In no split; used for the PCA picture at the end of a run.
_UNSEEN = ("chelsea.png", "coffee.png")
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


def photograph_names() -> list[str]:
    """Return the names of the photographs, in the order of their labels."""
    return [name.split(".")[0] for names in _FILES.values() for name in names]


@functools.cache
def load_photographs() -> tuple[np.ndarray, ...]:
    """Return the photographs, uint8 [H, W, 3] each, in the order of the names."""
    return tuple(
        _reduce(_load(package, name))
        for package, names in _FILES.items()
        for name in names
    )


def load_unseen() -> list[np.ndarray]:
    """Return whole photographs that are in no split, uint8 [H, W, 3] each."""
    return [_load("skimage", name) for name in _UNSEEN]


def _load(package: str, name: str) -> np.ndarray:
    spec = importlib.util.find_spec(package)  # finds without importing
    if spec is None or spec.origin is None:
        raise errors.UserError(
            f"data.source=photos needs the photographs inside {package}, which is "
            "not installed: pip install scikit-image scikit-learn"
        )
    path = pathlib.Path(spec.origin).parent / _FOLDERS[package] / name
    try:
        return image_decoder.Decoder().decode(path, name=name)
    except image_decoder.BadImage as error:
        raise errors.UserError(
            f"data.source=photos: {package} has no usable {error}; "
            "pip install the versions in requirements.txt"
        ) from error


def _reduce(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    if max(height, width) <= _MAX_SIDE:
        return pixels
    share = _REDUCED_SIDE / max(height, width)
    size = (round(width * share), round(height * share))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def boxes(split: str, *, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Return the boxes of a split in a photograph.

    Args:
      split: One of `SPLITS`.
      width: Width of the photograph in pixels.
      height: Height of the photograph in pixels.

    Returns:
      (left, top, right, bottom) of each box, not repeated for the renderings.
    """
    columns = width // TILE
    uses = [_COLUMNS[i % len(_COLUMNS)] for i in range(columns)]
    if split != "train":
        use = "train" if split == "bank" else split
        return [
            (i * TILE, top, (i + 1) * TILE, top + TILE)
            for i in range(columns)
            if uses[i] == use
            for top in range(0, height - TILE + 1, TILE)
        ]
    found = []
    for i in range(columns):
        if uses[i] != "train" or (i > 0 and uses[i - 1] == "train"):
            continue  # not the start of a run
        end = i
        while end < columns and uses[end] == "train":
            end += 1
        # After the last column follow a few pixels that belong to no column.
        right = width if end == columns else end * TILE
        right = min(right, i * TILE + WINDOW)
        for top in range(0, height - WINDOW + 1, WINDOW_STRIDE):
            found.append((i * TILE, top, right, top + WINDOW))
    return found


def luma(pixels: np.ndarray) -> np.ndarray:
    """Convert uint8 [H, W, 3] to uint8 [H, W, 1], as the decoder does for gray."""
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


class PhotosSource(base.Source):
    """One split of the embedded photographs; see the module's docstring.

    Attributes:
      split: One of `SPLITS`.
      channels: 3 for RGB, or 1 for its luma.
    """

    _shown_names = 0  # they are places in photographs

    def __init__(self, split: str = "train", *, channels: int = 3):
        if split not in SPLITS:
            raise ValueError(f"split = {split!r} is not one of {SPLITS}")
        self.split, self.channels = split, channels
        self._renderings = RENDERINGS if split in ("val", "test") else 1
        rows = [
            (label, *box)
            for label, pixels in enumerate(load_photographs())
            for box in boxes(split, width=pixels.shape[1], height=pixels.shape[0])
            for _ in range(self._renderings)
        ]
        self._rows = np.array(rows, np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labels(self) -> np.ndarray:
        """int32 [length], the photograph of each item."""
        return self._rows[:, 0].copy()

    @property
    def label_names(self) -> list[str]:
        """The names of the photographs."""
        return photograph_names()

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the split, its number of tiles and the channels."""
        gray = ("gray",) if self.channels == 1 else ()
        return index_cache.key("photos", self.split, str(len(self)), *gray)

    def _where(self) -> str:
        count = messages.counted(len(self.label_names), "embedded photograph")
        return f"of {count}, split {self.split}"

    def open(self, index: int) -> image_decoder.OpenedImage:
        """Open uint8 [h, w, C]: [64, 64, C], or [128, 64..128, C] for "train"."""
        label, left, top, right, bottom = self._rows[index]
        pixels = load_photographs()[label][top:bottom, left:right]
        if self.split in ("val", "test"):
            pixels = self._render(pixels, index)
        if self.channels == 1:
            pixels = luma(pixels)
        return image_decoder.from_array(np.ascontiguousarray(pixels))

    def _render(self, pixels: np.ndarray, index: int) -> np.ndarray:
        rng = np.random.default_rng((SPLITS.index(self.split), index))
        box = crop_boxes.random_crop_box(
            rng, width=TILE, height=TILE, scale=RENDER_SCALE
        )
        pixels = resize.crop_and_resize(pixels, box, TILE)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return on_host.color_jitter(rng, pixels, policies.POLICIES["rgb"])

    def name(self, index: int) -> str:
        """Return the name of an item in messages."""
        label, left, top, _, _ = self._rows[index]
        return f"{self.label_names[label]} at ({left}, {top})"


def make_source(config: Any, decoder: image_decoder.Decoder) -> PhotosSource:
    """Return the split for pretraining; nothing needs to be decoded."""
    del decoder
    return PhotosSource("train", channels=config.model.in_chans)
